"""What torchvision and PyTorch give where `kernels` has an operation: contiguous inputs, at least float32, any device.

Where torchvision has no defined answer (boxes that are NaN or infinite), its functions get the other boxes only, and
the answer is what `kernels` documents: zeros.
"""

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints
from torchvision.ops.poolers import LevelMapper


def roi_align(
    input: Tensor, rois: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    usable = torch.nonzero(torch.isfinite(rois).all(dim=1))[:, 0]
    pooled = input.new_zeros((len(rois), input.shape[1], *size))
    some = torchvision.ops.roi_align(input, rois[usable], size, scale, sampling_ratio, aligned)
    return pooled.index_put((usable,), some)


def multiscale_roi_align(
    features: list[Tensor],
    rois: Tensor,
    size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float = 224,
) -> Tensor:
    """A box of negative area has no level and gives zeros."""
    extent = rois[:, 3:] - rois[:, 1:3]
    usable = torch.isfinite(rois).all(dim=1) & (extent.prod(dim=1) >= 0)
    level = torch.full((len(rois),), -1)
    level[usable] = LevelMapper(2, 1 + len(features), canonical_scale)([rois[usable, 1:].float()])
    pooled = features[0].new_zeros((len(rois), features[0].shape[1], *size))
    for number, feature in enumerate(features):
        members = torch.nonzero(level == number)[:, 0]
        some = torchvision.ops.roi_align(feature, rois[members], size, scales[number], sampling_ratio, aligned)
        pooled = pooled.index_put((members,), some)
    return pooled


def roi_pool(input: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    usable = torch.nonzero(torch.isfinite(rois).all(dim=1))[:, 0]
    pooled = input.new_zeros((len(rois), input.shape[1], *size))
    return pooled.index_put((usable,), torchvision.ops.roi_pool(input, rois[usable], size, scale))


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    kept: Tensor = torchvision.ops.nms(boxes, scores, threshold)
    return kept


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, threshold: float) -> Tensor:
    """Class by class, then by score and index; torchvision's own function moves coordinates, and orders ties anyhow."""
    kept = [torch.zeros(0, dtype=torch.int64)]
    for each in idxs.unique():
        members = torch.nonzero(idxs == each)[:, 0]
        kept.append(members[nms(boxes[members], scores[members], threshold)])
    by_index = torch.cat(kept).sort().values
    return by_index[scores[by_index].sort(descending=True, stable=True).indices]


def segmented_nms(
    boxes: Tensor, scores: Tensor, threshold: float, max_keep: int, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """A score of NaN or -inf drops a box."""
    keep = torch.full((len(boxes), max_keep), -1)
    kept_counts = torch.zeros(len(boxes), dtype=torch.int64)
    for segment, count in enumerate(counts.tolist()):
        present = torch.nonzero(scores[segment, :count] > float("-inf"))[:, 0]
        kept = present[nms(boxes[segment, present], scores[segment, present], threshold)][:max_keep]
        keep[segment, : len(kept)], kept_counts[segment] = kept, len(kept)
    return keep, kept_counts


def match_boxes(anchors: Tensor, gt_boxes: Tensor, gt_counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From `torchvision.ops.box_iou`, 0 where that is not a number."""
    shape = (len(gt_boxes), len(anchors))
    index, forced = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    best = torch.full(shape, -1.0, dtype=anchors.dtype)
    for image, count in enumerate(gt_counts.tolist()):
        if count and len(anchors):
            overlap = torchvision.ops.box_iou(gt_boxes[image, :count], anchors).nan_to_num(0.0)
            best[image], index[image] = overlap.max(dim=0)
            of_truth = overlap.max(dim=1, keepdim=True).values
            forced[image] = ((overlap == of_truth) & (of_truth > 0)).any(dim=0)
    return index, best, forced


def decode_boxes(
    offsets: Tensor,
    anchors: Tensor,
    scores: Tensor,
    image_sizes: Tensor,
    counts: Tensor,
    *,
    weights: tuple[float, float, float, float],
    min_size: float = 0.0,
    score_threshold: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Image by image what `BoxCoder`, `clip_boxes_to_image` and `remove_small_boxes` give, a segment a class.

    Args:
        offsets: [B, N, C, 4]. anchors: [B, N, 4]. scores: [B, N, C].

    Returns:
        Boxes [B, C, N, 4] and scores [B, C, N].
    """
    images, number, classes, _ = offsets.shape
    boxes = offsets.new_zeros((images, classes, number, 4))
    left = torch.full((images, classes, number), float("-inf"), dtype=scores.dtype)
    for image, (height, width) in enumerate(image_sizes.tolist()):
        decoded = BoxCoder(weights).decode(offsets[image].flatten(1), [anchors[image]])
        clipped = torchvision.ops.clip_boxes_to_image(decoded.view(number, classes, 4), (height, width))
        boxes[image] = clipped.transpose(0, 1)
        flat, of_image = boxes[image].flatten(0, 1), scores[image].t().flatten()
        kept = torchvision.ops.remove_small_boxes(flat, min_size)
        kept = kept[(of_image[kept] > score_threshold) & (kept % max(number, 1) < counts[image])]
        left[image].view(-1)[kept] = of_image[kept]
    return boxes, left


def decode_keypoints(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """torchvision's, which has float32 whatever it is given, with zeros for boxes that are not finite."""
    usable = torch.nonzero(torch.isfinite(boxes).all(dim=1))[:, 0]
    keypoints = torch.zeros((*heatmaps.shape[:2], 3))
    scores = torch.zeros(heatmaps.shape[:2])
    if len(usable):
        keypoints[usable], scores[usable] = heatmaps_to_keypoints(heatmaps[usable], boxes[usable])
    return keypoints, scores


def mask_loss(
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor,
    gt_masks: Tensor,
    gt_index: Tensor,
    weights: Tensor,
    sampling_ratio: int,
) -> Tensor:
    """torchvision's `maskrcnn_loss`, with weights."""
    used = torch.nonzero(weights)[:, 0]
    if not len(used):
        return logits[used].sum()  # without weight they may be NaN
    targets = mask_targets(boxes[used], gt_masks, gt_index[used], logits.shape[-1], sampling_ratio).to(logits.dtype)
    entropy = binary_cross_entropy_with_logits(logits[used, labels[used]], targets, reduction="none")
    chosen = weights[used].to(logits.dtype)
    return (entropy.mean(dim=(1, 2)) * chosen).sum() / chosen.sum()


def mask_targets(boxes: Tensor, gt_masks: Tensor, gt_index: Tensor, size: int, sampling_ratio: int) -> Tensor:
    """What the loss compares each RoI's logits with [K, M, M], in the dtype of the boxes."""
    rois = torch.cat([gt_index[:, None].to(boxes.dtype), boxes], dim=1)
    return roi_align(gt_masks[:, None].to(boxes.dtype), rois, (size, size), 1.0, sampling_ratio, False)[:, 0]


def mask_counts(
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor,
    gt_masks: Tensor,
    gt_index: Tensor,
    weights: Tensor,
    sampling_ratio: int,
) -> Tensor:
    """Cells of RoIs with weight: all, positive, falsely positive, falsely negative [4], as Detectron2 counts them."""
    used = torch.nonzero(weights)[:, 0]
    targets = mask_targets(boxes[used], gt_masks, gt_index[used], logits.shape[-1], sampling_ratio)
    positive, predicted = targets >= 0.5, logits[used, labels[used]] > 0
    number = torch.tensor(positive.numel())
    return torch.stack([number, positive.sum(), (predicted & ~positive).sum(), (~predicted & positive).sum()])


def class_logits(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """A 1x1 convolution for all classes, of which each RoI's class is taken [K, M, M]."""
    if features.ndim == 6:
        features = features.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    of_all = conv2d(features, weight[:, :, None, None], bias)
    return of_all[torch.arange(len(labels)), labels]

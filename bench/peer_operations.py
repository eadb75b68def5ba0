"""What torchvision and PyTorch give where `kernels` has an operation: contiguous inputs, at least float32, any device.

Where torchvision has no defined answer (boxes that are NaN or infinite), its functions get the other boxes only, and
the answer is what `kernels` documents: zeros.
"""

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d, grid_sample
from torchvision.models.detection.roi_heads import paste_masks_in_image
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
) -> Tensor:
    """A box of negative area has no level and gives zeros."""
    extent = rois[:, 3:] - rois[:, 1:3]
    usable = torch.isfinite(rois).all(dim=1) & (extent.prod(dim=1) >= 0)
    level = torch.full((len(rois),), -1)
    level[usable] = LevelMapper(2, 1 + len(features))([rois[usable, 1:].float()])
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
    """A score of NaN or -inf drops a box."""
    present = torch.nonzero(scores > float("-inf"))[:, 0]
    kept: Tensor = present[torchvision.ops.nms(boxes[present], scores[present], threshold)]
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
    keep = torch.full((len(boxes), max_keep), -1)
    kept_counts = torch.zeros(len(boxes), dtype=torch.int64)
    for segment, count in enumerate(counts.tolist()):
        kept = nms(boxes[segment, :count], scores[segment, :count], threshold)[:max_keep]
        keep[segment, : len(kept)], kept_counts[segment] = kept, len(kept)
    return keep, kept_counts


def match_boxes(anchors: Tensor, gt_boxes: Tensor, gt_counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From `torchvision.ops.box_iou`."""
    shape = (len(gt_boxes), len(anchors))
    index, forced = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    best = torch.full(shape, -1.0, dtype=anchors.dtype)
    for image, count in enumerate(gt_counts.tolist()):
        if count and len(anchors):
            overlap = torchvision.ops.box_iou(gt_boxes[image, :count], anchors)
            best[image], index[image] = overlap.max(dim=0)
            of_truth = overlap.max(dim=1, keepdim=True).values
            forced[image] = ((overlap == of_truth) & (of_truth > 0)).any(dim=0)
    return index, best, forced


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
        return logits.sum() * 0
    size = logits.shape[-1]
    rois = torch.cat([gt_index[used, None].to(boxes.dtype), boxes[used]], dim=1)
    masks = gt_masks[:, None].to(logits.dtype)
    targets = roi_align(masks, rois, (size, size), 1.0, sampling_ratio, False)[:, 0]
    entropy = binary_cross_entropy_with_logits(logits[used, labels[used]], targets, reduction="none")
    chosen = weights[used].to(logits.dtype)
    return (entropy.mean(dim=(1, 2)) * chosen).sum() / chosen.sum()


def class_logits(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """A 1x1 convolution for all classes, of which each RoI's class is taken [K, M, M]."""
    if features.ndim == 6:
        features = features.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    of_all = conv2d(features, weight[:, :, None, None], bias)
    return of_all[torch.arange(len(labels)), labels]


def paste_masks(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float | None, rule: str
) -> Tensor:
    """torchvision's `paste_masks_in_image`, or `grid_sample` at the centres of pixels as Detectron2 uses it."""
    usable = torch.isfinite(boxes).all(dim=1)
    pasted = masks.new_zeros((len(masks), *image_size))
    if bool(usable.any()):
        paste = _paste_by_integer_box if rule == "torchvision" else _paste_by_pixel_centers
        pasted[usable] = paste(masks[usable], boxes[usable], image_size)
    if threshold is None:
        return pasted
    return pasted > threshold if rule == "torchvision" else pasted >= threshold


def _paste_by_integer_box(masks: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    pasted: Tensor = paste_masks_in_image(masks[:, None], boxes, image_size)[:, 0]
    return pasted


def _paste_by_pixel_centers(masks: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    left, top, right, bottom = boxes[:, :, None].unbind(dim=1)
    y = (torch.arange(image_size[0], dtype=boxes.dtype) + 0.5 - top) / (bottom - top) * 2 - 1
    x = (torch.arange(image_size[1], dtype=boxes.dtype) + 0.5 - left) / (right - left) * 2 - 1
    shape = (len(boxes), *image_size)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return grid_sample(masks[:, None], grid, align_corners=False)[:, 0]

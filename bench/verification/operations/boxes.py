"""Problems of boxes: non-maximum suppression, matching, decoding; and of the keypoints in boxes."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

import kernels
from bench.cases import Pyramid, proposals
from bench.peers import operations as peers
from bench.verification.operations.problem import Problem
from bench.verification.scenes import Scene, largest_gap

KEYPOINT_ROIS = 24


def nms(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    boxes, scores = (each[0].to(dtype) for each in scene.segments)
    return Problem(
        {"boxes": boxes, "scores": scores},
        lambda boxes, scores: kernels.nms(boxes, scores, 0.5),
        lambda boxes, scores: peers.nms(boxes, scores, 0.5),
        ("kept",),
        exact=True,
    )


def batched_nms(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    boxes, scores = (each.flatten(0, 1).to(dtype) for each in scene.segments)
    return Problem(
        {"boxes": boxes, "scores": scores, "idxs": scene.choices(3, len(scores)) - 1},
        lambda boxes, scores, idxs: kernels.batched_nms(boxes, scores, idxs, 0.6),
        lambda boxes, scores, idxs: peers.batched_nms(boxes, scores, idxs, 0.6),
        ("kept",),
        exact=True,
    )


def segmented_nms(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    boxes, scores = (each.to(dtype) for each in scene.segments)
    counts = torch.tensor([scene.candidates, scene.candidates * 2 // 3])
    return Problem(
        {"boxes": boxes, "scores": scores, "counts": counts},
        lambda boxes, scores, counts: kernels.segmented_nms(boxes, scores, 0.7, scene.max_keep, counts),
        lambda boxes, scores, counts: peers.segmented_nms(boxes, scores, 0.7, scene.max_keep, counts),
        ("kept", "counts"),
        exact=True,
    )


def match_boxes(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    """The last image has no ground truth; images are as large as the anchors'."""
    images, truths = scene.pyramid.images, scene.truths
    drawn = proposals(Pyramid(images), truths)[:, 1:] if truths else torch.zeros((0, 4))
    gt_boxes = drawn.reshape(images, truths, 4).clone()
    odd = scene.regions[:, 1:] if scene.boxes != "proposals" else drawn[:0]
    gt_boxes[0, : len(odd)] = odd[:truths]
    counts = torch.full((images,), truths)
    counts[-1] = truths if images == 1 else 0
    return Problem(
        {"anchors": scene.segments[0][0].to(dtype), "gt_boxes": gt_boxes.to(dtype), "gt_counts": counts},
        kernels.match_boxes,
        peers.match_boxes,
        ("index", "overlap", "forced"),
        exact=True,
    )


def decode_boxes(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    """All classes of shared proposals, as the box head has them. No side or score is so near its limit that rounding
    would decide."""
    anchors = scene.segments[0].to(dtype)
    images, number, _ = anchors.shape
    weights = (10.0, 10.0, 5.0, 5.0)
    offsets = scene.normal(images, number, scene.classes, 4, seed=13) * torch.tensor(weights)
    scores = scene.uniform(images, number, scene.classes, seed=14).to(dtype)
    inputs = {
        "offsets": offsets.to(dtype),
        "anchors": anchors,
        "scores": scores,
        "image_sizes": torch.tensor([[800, 1344], [600, 1000]]),  # the segments are of images like the first
        "counts": torch.tensor([number, number * 2 // 3]),
    }

    precise: dict[str, Any] = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    boxes, _ = peers.decode_boxes(**precise, weights=weights)
    least = largest_gap(boxes[..., 2:] - boxes[..., :2], around=4, within=3)
    threshold = largest_gap(scores.double(), around=0.3)

    def ours(offsets: Tensor, anchors: Tensor, scores: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        by_class = offsets.transpose(1, 2), anchors[:, None], scores.transpose(1, 2)
        return kernels.decode_boxes(*by_class, **inputs, weights=weights, min_size=least, score_threshold=threshold)

    def theirs(**inputs: Tensor) -> tuple[Tensor, Tensor]:
        return peers.decode_boxes(**inputs, weights=weights, min_size=least, score_threshold=threshold)

    return Problem(inputs, ours, theirs, ("boxes", "scores"))


def decode_keypoints(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    """RoIs with a keypoint where rounding would decide which pixel is the largest are left out."""
    boxes = scene.regions[:KEYPOINT_ROIS, 1:]
    side = 2 * scene.mask_side
    heatmaps = scene.normal(len(boxes), min(scene.classes, 17), side, side, seed=15).to(dtype)
    sure = torch.tensor(
        [_leads(*each) for each in zip(heatmaps.double(), boxes.double(), strict=True)], dtype=torch.bool
    )
    memory_format = torch.channels_last if layout == "channels last" else torch.contiguous_format
    return Problem(
        {"heatmaps": heatmaps[sure].contiguous(memory_format=memory_format), "boxes": boxes[sure]},
        kernels.decode_keypoints,
        peers.decode_keypoints,
        ("keypoints", "scores"),
    )


def _leads(heatmaps: Tensor, box: Tensor) -> bool:
    """Whether in each heatmap, resized to its box, the largest value is well above every other."""
    if not bool(box.isfinite().all()):
        return True  # it gives zeros
    width, height = (box[2:] - box[:2]).clamp(min=1).ceil().int().tolist()
    resized = interpolate(heatmaps[None], size=(height, width), mode="bicubic", align_corners=False)[0].flatten(1)
    if width * height == 1:
        return True
    first, second = resized.topk(2, dim=1).values.unbind(dim=1)
    return bool((first - second > 1e-5 * first.abs().clamp(min=1)).all())

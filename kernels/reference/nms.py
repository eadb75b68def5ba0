"""Greedy non-maximum suppression, box after box."""

import torch
from torch import Tensor


def segmented_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_keep: int, counts: Tensor | None, every: bool
) -> tuple[Tensor, Tensor]:
    """See `kernels.segmented_nms`. boxes: [S, N, 4], scores: [S, N]; kept indices [S, max_keep] and counts [S].

    Args:
        every: whether boxes of every score take part, NaN as the highest; else those with -inf or NaN are absent.
    """
    compute = torch.promote_types(boxes.dtype, torch.float32)
    keep = torch.full((boxes.shape[0], max_keep), -1, dtype=torch.int64, device=boxes.device)
    kept_counts = torch.zeros(boxes.shape[0], dtype=torch.int64, device=boxes.device)
    for segment in range(boxes.shape[0]):
        size = boxes.shape[1] if counts is None else int(counts[segment])
        own = scores[segment, :size]
        order = torch.sort(own, descending=True, stable=True).indices
        if not every:
            order = order[own[order] > float("-inf")]  # false for NaN too
        kept = _greedy(boxes[segment].to(compute), order.tolist(), iou_threshold, max_keep)
        keep[segment, : len(kept)] = keep.new_tensor(kept)
        kept_counts[segment] = len(kept)
    return keep, kept_counts


def _greedy(boxes: Tensor, order: list[int], iou_threshold: float, max_keep: int) -> list[int]:
    """Indices of the kept boxes, of those in `order`, the best first."""
    kept: list[int] = []
    for index in order:
        if len(kept) == max_keep:
            break
        if not any(_iou(boxes[other], boxes[index]).item() > iou_threshold for other in kept):
            kept.append(index)
    return kept


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of two boxes; NaN for two boxes without area."""
    width = (torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0])).clamp(min=0)
    height = (torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1])).clamp(min=0)
    intersection = width * height
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return intersection / (area_a + area_b - intersection)

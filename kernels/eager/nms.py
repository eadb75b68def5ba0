"""Greedy non-maximum suppression in blocks.

Boxes are taken in blocks of descending score. A block is first compared with the boxes kept so far, all at once; what
is left settles inside the block by repeating "kept are those that no kept one suppresses" until nothing changes, which
reaches the greedy result because the best box of each chain is settled in each round. Segments of similar size go
through together. It asks the host for sizes, which is free on a CPU.
"""

import torch
from torch import Tensor

_BLOCK = 128


def segmented_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_keep: int, counts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `kernels.segmented_nms`. boxes: [S, N, 4], scores: [S, N]; kept indices [S, max_keep] and counts [S]."""
    segments, size = scores.shape
    keep = torch.full((segments, max_keep), -1, dtype=torch.int64, device=boxes.device)
    kept_counts = torch.zeros(segments, dtype=torch.int64, device=boxes.device)
    if segments == 0 or size == 0 or max_keep == 0:
        return keep, kept_counts
    compute = torch.promote_types(boxes.dtype, torch.float32)
    if compute == torch.float32:
        iou_threshold = _round_down(iou_threshold)
    present = scores > float("-inf")  # false for NaN too
    if counts is not None:
        present &= torch.arange(size, device=boxes.device) < counts[:, None]
    sizes = present.sum(dim=1)
    for group in _groups_of_similar_size(sizes):
        most = int(sizes[group].max())
        ranked = torch.where(present[group], scores[group], float("-inf"))
        order = torch.sort(ranked, dim=1, descending=True, stable=True).indices[:, :most]
        best = boxes[group].gather(1, order[..., None].expand(-1, -1, 4)).to(compute)
        keep[group], kept_counts[group] = _greedy(best, order, sizes[group], iou_threshold, max_keep)
    return keep, kept_counts


def _round_down(threshold: float) -> float:
    """The largest float32 that is at most the threshold: a float32 is above both or neither.

    So overlaps compare with the threshold as given, as in torchvision on a CPU, and not with its nearest float32.
    """
    nearest = torch.tensor(threshold, dtype=torch.float32)
    if nearest.item() > threshold:
        nearest = torch.nextafter(nearest, torch.tensor(-1.0))
    return nearest.item()


def _groups_of_similar_size(sizes: Tensor) -> list[Tensor]:
    """Indices of the segments with boxes, grouped by size within a factor of two."""
    buckets: dict[int, list[int]] = {}
    for segment, size in enumerate(sizes.tolist()):
        if size:
            buckets.setdefault((size - 1).bit_length(), []).append(segment)
    return [torch.tensor(group, device=sizes.device) for group in buckets.values()]


def _greedy(boxes: Tensor, order: Tensor, sizes: Tensor, iou_threshold: float, max_keep: int) -> tuple[Tensor, Tensor]:
    """Boxes [s, n, 4] by descending score and their indices [s, n], of which the first sizes [s] are present."""
    segments, most = order.shape
    capacity = min(max_keep, most)
    # One slot more than the capacity takes what is not kept.
    kept_boxes = boxes.new_zeros((segments, capacity + 1, 4))
    keep = order.new_full((segments, max(max_keep, capacity) + 1), -1)
    counts = sizes.new_zeros(segments)
    rank = torch.arange(most, device=boxes.device)
    for start in range(0, most, _BLOCK):
        block = boxes[:, start : start + _BLOCK]
        alive = rank[start : start + _BLOCK] < sizes[:, None]
        so_far = int(counts.max())
        if so_far:
            alive &= ~_suppresses(kept_boxes[:, :so_far], block, iou_threshold).any(dim=1)
        kept = _settle(alive, _suppresses(block, block, iou_threshold).triu_(diagonal=1))
        slot = torch.where(kept, counts[:, None] + kept.cumsum(dim=1) - 1, capacity).clamp_(max=capacity)
        kept_boxes.scatter_(1, slot[..., None].expand(-1, -1, 4), block)
        keep.scatter_(1, slot, order[:, start : start + _BLOCK])
        counts = (counts + kept.sum(dim=1)).clamp_(max=capacity)
        if int(counts.min()) == capacity:
            break
    keep[:, capacity] = -1
    return keep[:, :max_keep], counts


def _suppresses(first: Tensor, second: Tensor, iou_threshold: float) -> Tensor:
    """[s, a, b]: whether the IoU of box a of `first` and box b of `second` is above the threshold."""
    x1, y1, x2, y2 = first[..., None].unbind(2)
    u1, v1, u2, v2 = second[:, None].unbind(3)
    width = torch.minimum(x2, u2).sub_(torch.maximum(x1, u1)).clamp_(min=0)
    intersection = torch.minimum(y2, v2).sub_(torch.maximum(y1, v1)).clamp_(min=0).mul_(width)
    areas = torch.add((x2 - x1) * (y2 - y1), (u2 - u1) * (v2 - v1), out=width)
    return intersection.div_(areas.sub_(intersection)) > iou_threshold


def _settle(alive: Tensor, suppresses: Tensor) -> Tensor:
    """Greedy choice [s, b] among boxes in descending score; suppresses[s, i, j] is set for i before j only."""
    kept = alive
    while True:
        again = alive & ~(suppresses & kept[:, :, None]).any(dim=1)
        if torch.equal(again, kept):
            return kept
        kept = again

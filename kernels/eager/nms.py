"""Greedy non-maximum suppression as a sweep along x.

Two boxes whose IoU is above a threshold t start within (1 - t) of a box's width of each other. In the order of their
left sides, the boxes that one has to be compared with therefore lie side by side in memory, behind it, and a binary
search finds how many they are. What is left is a sparse graph of "suppresses", from higher to lower score. In rounds,
boxes that nobody can suppress any more stay, what they suppress goes, and the pairs of both are done with. Segments are
treated together. Where boxes crowd, a graph would be large: then the best boxes, which leave little of a crowd, are
compared with all others first. NumPy selects, as it finds the few of many flags several times as fast as PyTorch; what
is on a GPU is copied for it.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.rounding import float32_at_most

# Boxes of a block: neighbours along x, which are compared with the same boxes behind them.
_ROWS = 32
# Pairs that are compared at a time: fewer, and calling costs more than comparing; more would leave the caches.
_CELLS = 1 << 17
# Pairs above the threshold, for each box, that are a crowd.
_CROWD = 32
# The best boxes of a segment that a crowd is compared with first, and pairs that are then compared at a time.
_BEST = 32
_BEST_PAIRS = 1 << 23
# Rounding of the sweep's bounds, relative to the coordinates; too many pairs do no harm.
_SLACK = 1e-5

Indices = NDArray[np.int64]


def segmented_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_keep: int, counts: Tensor | None, every: bool
) -> tuple[Tensor, Tensor]:
    """See `kernels.segmented_nms`. boxes: [S, N, 4], scores: [S, N]; kept indices [S, max_keep] and counts [S].

    Args:
        every: whether boxes of every score take part, NaN as the highest; else those with -inf or NaN are absent.
    """
    segments, size = scores.shape
    keep = torch.full((segments, max_keep), -1, dtype=torch.int64, device=boxes.device)
    if segments == 0 or size == 0 or max_keep == 0:
        return keep, torch.zeros(segments, dtype=torch.int64, device=boxes.device)
    compute = torch.promote_types(boxes.dtype, torch.float32)
    if compute == torch.float32:
        iou_threshold = float32_at_most(iou_threshold)
    present = torch.ones_like(scores, dtype=torch.bool) if every else scores > float("-inf")  # false for NaN too
    if counts is not None:
        present &= torch.arange(size, device=boxes.device) < counts[:, None]
    most = int(present.sum(dim=1).max())
    if most == 0:
        return keep, torch.zeros(segments, dtype=torch.int64, device=boxes.device)
    ranked = torch.where(present, scores, float("-inf"))
    order = torch.sort(ranked, dim=1, descending=True, stable=True).indices[:, :most]
    present = present.gather(1, order)
    best = boxes.gather(1, order[..., None].expand(-1, -1, 4)).to(compute)
    kept = _greedy(best, present, iou_threshold)
    place = kept.cumsum(dim=1) - 1
    kept &= place < max_keep
    segment, rank = torch.nonzero(kept, as_tuple=True)
    keep[segment, place[segment, rank]] = order[segment, rank]
    return keep, kept.sum(dim=1)


def _greedy(boxes: Tensor, present: Tensor, iou_threshold: float) -> Tensor:
    """Which of boxes [S, n, 4] by descending score are kept [S, n], of those that are present [S, n]."""
    x1, y1, x2, y2 = boxes.unbind(2)
    # Only boxes with an area can suppress and be suppressed; a comparison with NaN is false.
    left = present & (x2 > x1) & (y2 > y1) & (x2 - x1 < float("inf")) & (y2 - y1 < float("inf"))
    kept = present & ~left
    best = _BEST
    while (pairs := _suppressions(boxes, left, iou_threshold)) is None:
        before = left.sum()
        stay, left = _best_and_rest(boxes, left, min(best, max(_BEST_PAIRS // left.numel(), 1)), iou_threshold)
        kept |= stay
        if before - left.sum() < _CROWD * best:  # not yet those that the crowd is around
            best *= 2
    winners, losers = pairs
    alive = left.flatten().numpy(force=True).copy()
    while len(winners):
        threatened = np.zeros_like(alive)
        threatened[losers] = True
        open_ = threatened[winners]
        alive[losers[~open_]] = False
        open_ &= alive[winners] & alive[losers]
        winners, losers = winners[open_], losers[open_]
    return kept | torch.from_numpy(alive).to(kept.device).view_as(kept)


def _best_and_rest(boxes: Tensor, left: Tensor, number: int, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Of the best `number` that are `left` in each segment those that stay, and what they leave of the others."""
    chosen = left & (left.cumsum(dim=1) <= number)
    index = torch.sort(chosen.byte(), dim=1, descending=True, stable=True).indices[:, :number]
    x1, y1, x2, y2 = boxes.unbind(2)
    best = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    best_x1, best_y1, best_x2, best_y2 = best[:, :, None].unbind(3)
    height = (torch.minimum(best_y2, y2[:, None]) - torch.maximum(best_y1, y1[:, None])).clamp_(min=0)
    overlap = (torch.minimum(best_x2, x2[:, None]) - torch.maximum(best_x1, x1[:, None])).mul_(height)
    area = (x2 - x1) * (y2 - y1)
    above = overlap.div_(area.gather(1, index)[..., None] + area[:, None] - overlap) > iou_threshold
    above &= index[..., None] < torch.arange(boxes.shape[1], device=boxes.device)
    left = left.clone()
    for place, suppressed in zip(index.split(1, dim=1), above.unbind(1), strict=True):
        left &= ~(suppressed & left.gather(1, place))
    return left & chosen, left & ~chosen


def _suppressions(boxes: Tensor, usable: Tensor, iou_threshold: float) -> tuple[Indices, Indices] | None:
    """Pairs of flat indices, the better box first, whose IoU is above the threshold; None if they are a crowd."""
    segments, number = usable.shape
    x1, y1, x2, y2 = boxes.unbind(2)
    start, by_start = torch.sort(torch.where(usable, x1, float("inf")), dim=1)
    reach = (1 - iou_threshold) * (x2 - x1) + _SLACK * (x1.abs() + x2.abs())
    stop = torch.where(usable, x1 + reach, float("-inf")).clamp_(max=torch.finfo(x1.dtype).max).gather(1, by_start)
    # In the order of x1, the partners of a box are those behind it that start before it reaches too far.
    partners = torch.searchsorted(start, stop, right=True) - torch.arange(1, number + 1, device=boxes.device)
    flat = (by_start + number * torch.arange(segments, device=boxes.device)[:, None]).flatten()
    sides = torch.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)]).flatten(1)[:, flat]
    found = _pairs_above(sides.numpy(force=True), partners.clamp_(min=0).flatten().numpy(force=True), iou_threshold)
    most = _CROWD * int(usable.sum())
    ranks = flat.numpy(force=True)
    winners, losers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for first, second in found:
        one, other = ranks[first], ranks[second]
        winners.append(np.minimum(one, other))
        losers.append(np.maximum(one, other))
        most -= len(one)
        if most < 0:
            return None
    return np.concatenate(winners), np.concatenate(losers)


def _pairs_above(
    sides: NDArray[np.floating], partners: Indices, iou_threshold: float
) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of a box and one of its `partners` [T], which lie behind it, with an IoU above the threshold, in pieces.

    The boxes of a block are compared with a band of boxes behind each, as many as the one with the most partners has,
    and blocks with bands of like widths together. Bands are views, and buffers always the same, as fresh memory costs
    as much as the comparison. sides: x1, y1, x2, y2 and area [5, T] by ascending x1; the last has no partner.
    """
    starts = np.arange(0, len(partners), _ROWS)
    widths = np.maximum.reduceat(partners, starts)
    by_width = np.argsort(widths)
    starts, widths = starts[by_width], widths[by_width]
    padded = np.zeros((5, len(partners) + _ROWS + widths[-1]), sides.dtype)
    padded[:, : len(partners)] = sides
    buffers = torch.from_numpy(np.empty((2, max(_CELLS, _ROWS * widths[-1])), sides.dtype))
    flags = np.empty(buffers.shape[1], np.bool_)
    for blocks, width in _alike(widths.tolist()):
        bands = [padded[:, start : start + _ROWS + width] for start in starts[blocks].tolist()]
        near = torch.from_numpy(np.stack(bands, axis=1))
        _, y1, x2, y2, area = near[:, :, :_ROWS, None]
        next_x1, next_y1, next_x2, next_y2, next_area = near[:, :, 1:].unfold(2, width, 1)  # [blocks, _ROWS, width]
        overlap, height = buffers[:, : next_x1.numel()].view(2, *next_x1.shape)
        torch.minimum(next_y2, y2, out=height).sub_(torch.maximum(next_y1, y1, out=overlap)).clamp_(min=0)
        torch.minimum(next_x2, x2, out=overlap).sub_(next_x1).mul_(height)  # its left side is the later one
        overlap.div_(torch.add(next_area, area, out=height).sub_(overlap))
        above = np.greater(overlap.flatten().numpy(), iou_threshold, out=flags[: overlap.numel()])
        cell = np.flatnonzero(above)
        row = cell // width
        place = cell - row * width
        first = np.add.outer(starts[blocks], np.arange(_ROWS)).ravel()[row]
        own = place < partners.take(first, mode="clip")  # others lie in the band of a neighbour
        first, place = first[own], place[own]
        yield first, first + place + 1


def _alike(widths: list[int]) -> Iterator[tuple[slice, int]]:
    """Slices of ascending widths of blocks, each with its largest: of not too many cells, but a block at least."""
    start = 0
    for stop in range(1, len(widths) + 1):
        if stop == len(widths) or (stop + 1 - start) * _ROWS * widths[stop] > _CELLS:
            if widths[stop - 1]:
                yield slice(start, stop), widths[stop - 1]
            start = stop

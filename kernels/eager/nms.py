"""Greedy non-maximum suppression as a sweep along x.

Two boxes whose IoU is above a threshold t start within (1 - t) of a box's width of each other. In the order of their
left sides, the boxes that one has to be compared with therefore lie side by side in memory, behind it, and a binary
search finds how many they are. What is left is a sparse graph of "suppresses", from higher to lower score. In rounds,
boxes that nobody can suppress any more stay, what they suppress goes, and the pairs of both are done with. All segments
go through together. Of a crowd, whose pairs would be many, the best are gone through one by one first. What is selected
goes through NumPy, which finds the few of many flags several times as fast as PyTorch; tensors of a GPU are copied for
it.
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
# Pairs a box from which on the best are gone through first, some at a time: of a crowd they leave little.
_CROWD = 256
_BEST = 32
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
    usable = present & (x2 > x1) & (y2 > y1) & (x2 - x1 < float("inf")) & (y2 - y1 < float("inf"))
    idle = present & ~usable
    by_start, partners = _partners(boxes, usable, iou_threshold)
    start, number = 0, usable.numel()
    while partners.sum() > _CROWD * number and start < boxes.shape[1]:
        stop = start + max(1, min(_BEST, 64 * _CELLS // number))
        thinned = _without_suppressed(boxes, usable, start, stop, iou_threshold)
        worthwhile = 8 * (usable & ~thinned).sum() > usable.sum()
        start, usable = stop, thinned
        by_start, partners = _partners(boxes, usable, iou_threshold)
        if not worthwhile:
            break
    winners, losers = _suppressions(boxes, by_start, partners, iou_threshold)
    alive = usable.flatten().numpy(force=True).copy()
    while len(winners):
        contested = np.zeros_like(alive)
        contested[losers] = True
        contest = contested[winners]
        alive[losers[~contest]] = False  # nobody is left to suppress their winners
        contest &= alive[winners] & alive[losers]
        winners, losers = winners[contest], losers[contest]
    return idle | torch.from_numpy(alive).to(present.device).view_as(present)


def _without_suppressed(boxes: Tensor, usable: Tensor, start: int, stop: int, iou_threshold: float) -> Tensor:
    """The `usable` boxes [S, n] that are left by those of ranks `start` to `stop`, the best that are not done with."""
    x1, y1, x2, y2 = boxes[:, start:].unbind(2)
    best_x1, best_y1, best_x2, best_y2 = boxes[:, start:stop, None].unbind(3)
    height = (torch.minimum(best_y2, y2[:, None]) - torch.maximum(best_y1, y1[:, None])).clamp_(min=0)
    overlap = (torch.minimum(best_x2, x2[:, None]) - torch.maximum(best_x1, x1[:, None])).mul_(height)
    area = (x2 - x1) * (y2 - y1)
    above = overlap.div_(area[:, : stop - start, None] + area[:, None] - overlap) > iou_threshold
    usable = usable.clone()
    left = usable[:, start:]
    for rank, suppressed in enumerate(above.unbind(1)):
        suppressed[:, : rank + 1] = False
        left &= ~(suppressed & left[:, rank, None])
    return usable


def _partners(boxes: Tensor, usable: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Order of boxes along x, and with how many behind it in this order each has to be compared; both [S, n]."""
    x1, x2 = boxes[..., 0], boxes[..., 2]
    start, by_start = torch.sort(torch.where(usable, x1, float("inf")), dim=1)
    reach = (1 - iou_threshold) * (x2 - x1) + _SLACK * (x1.abs() + x2.abs())
    stop = torch.where(usable, x1 + reach, float("-inf")).gather(1, by_start)
    partners = torch.searchsorted(start, stop, right=True)
    return by_start, partners.sub_(torch.arange(1, boxes.shape[1] + 1, device=boxes.device)).clamp_(min=0)


def _suppressions(boxes: Tensor, by_start: Tensor, partners: Tensor, iou_threshold: float) -> tuple[Indices, Indices]:
    """Pairs of flat indices, the better box first, whose IoU is above the threshold."""
    segments, number = by_start.shape
    x1, y1, x2, y2 = boxes.unbind(2)
    rank = (by_start + number * torch.arange(segments, device=boxes.device)[:, None]).flatten()
    sides = torch.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)]).flatten(1)[:, rank].numpy(force=True)
    ranks = rank.numpy(force=True)
    winners, losers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for first, second in _pairs_above(sides, partners.flatten().numpy(force=True), iou_threshold):
        one, other = ranks[first], ranks[second]
        winners.append(np.minimum(one, other))
        losers.append(np.maximum(one, other))
    return np.concatenate(winners), np.concatenate(losers)


def _pairs_above(
    sides: NDArray[np.floating], partners: Indices, iou_threshold: float
) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of a box and one of its `partners` [T], which lie behind it, with an IoU above the threshold, in pieces.

    The boxes of a block are compared with a band of boxes behind each, as many as the one with the most partners has,
    and blocks with bands of like widths together. Bands are views, and buffers always the same, as fresh memory costs
    as much as the comparison. sides: x1, y1, x2, y2 and area [5, T] by ascending x1.
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

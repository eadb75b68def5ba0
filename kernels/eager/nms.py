"""Greedy non-maximum suppression as a sweep over pairs that lie close together.

Two boxes whose IoU is above a threshold t start within (1 - t) of a box's width and height of each other, so of all
pairs only those near each other along x, and then along y, are compared: a sort and a binary search find them. What is
left is a sparse graph of "suppresses", from higher to lower score. In rounds, boxes that nobody can suppress any more
stay, what they suppress goes, and the pairs of both are done with. All segments go through together. It asks the host
for sizes, which is free on a CPU.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

# Boxes are compared with so many behind them at a time, and so many boxes at a time: more would leave the caches.
_WINDOW = 32
_ROWS = 2**12
# Rounding of the sweep's bounds, relative to the coordinates; too many pairs do no harm.
_SLACK = 1e-5


def segmented_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_keep: int, counts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `kernels.segmented_nms`. boxes: [S, N, 4], scores: [S, N]; kept indices [S, max_keep] and counts [S]."""
    segments, size = scores.shape
    keep = torch.full((segments, max_keep), -1, dtype=torch.int64, device=boxes.device)
    if segments == 0 or size == 0 or max_keep == 0:
        return keep, torch.zeros(segments, dtype=torch.int64, device=boxes.device)
    compute = torch.promote_types(boxes.dtype, torch.float32)
    if compute == torch.float32:
        iou_threshold = _round_down(iou_threshold)
    present = scores > float("-inf")  # false for NaN too
    if counts is not None:
        present &= torch.arange(size, device=boxes.device) < counts[:, None]
    most = int(present.sum(dim=1).max())
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


def _round_down(threshold: float) -> float:
    """The largest float32 that is at most the threshold: a float32 is above both or neither.

    So overlaps compare with the threshold as given, as in torchvision on a CPU, and not with its nearest float32.
    """
    nearest = torch.tensor(threshold, dtype=torch.float32)
    if nearest.item() > threshold:
        nearest = torch.nextafter(nearest, torch.tensor(-1.0))
    return nearest.item()


def _greedy(boxes: Tensor, present: Tensor, iou_threshold: float) -> Tensor:
    """Which of boxes [S, n, 4] by descending score are kept [S, n], of those that are present [S, n]."""
    winners, losers = _suppressions(boxes, present, iou_threshold)
    alive = present.flatten()
    while len(winners):
        contested = torch.zeros_like(alive)
        contested[losers] = True
        final = ~contested[winners]  # nobody is left to suppress these
        alive[losers[final]] = False
        open_ = alive[winners] & alive[losers] & ~final
        winners, losers = winners[open_], losers[open_]
    return alive.view_as(present)


def _suppressions(boxes: Tensor, present: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Pairs of flat indices, the better box first, whose IoU is above the threshold."""
    segments, number = present.shape
    x1, y1, x2, y2 = boxes.unbind(2)
    # Only boxes with an area can suppress and be suppressed; a comparison with NaN is false.
    usable = present & (x2 > x1) & (y2 > y1) & (x2 - x1 < float("inf")) & (y2 - y1 < float("inf"))
    start = torch.where(usable, x1, float("inf"))
    start, by_start = torch.sort(start, dim=1)
    reach = (1 - iou_threshold) * (x2 - x1) + _SLACK * (x1.abs() + x2.abs())
    stop = torch.where(usable, x1 + reach, float("-inf")).gather(1, by_start)
    # In the order of x1, the partners of a box are those behind it that start before it reaches too far.
    partners = torch.searchsorted(start, stop, right=True) - torch.arange(1, number + 1, device=boxes.device)
    flat = (by_start + number * torch.arange(segments, device=boxes.device)[:, None]).flatten()
    corners = [each.flatten()[flat].contiguous() for each in (x1, y1, x2, y2)]
    partners = partners.clamp_(min=0).flatten()
    winners, losers = [], []
    for first, second in _near_pairs(corners[1], corners[3], partners, iou_threshold):
        above = _iou_above(corners, first, second, iou_threshold)
        a, b = flat[first[above]], flat[second[above]]
        winners.append(torch.minimum(a, b))
        losers.append(torch.maximum(a, b))
    if not winners:
        return flat[:0], flat[:0]
    return torch.cat(winners), torch.cat(losers)


def _near_pairs(low: Tensor, high: Tensor, partners: Tensor, iou_threshold: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each box and the `partners` [T] boxes behind it, the pairs that are near along the other axis too, in pieces.

    Pairs start within (1 - t) of the longer one's length of each other. Boxes are compared with windows of the boxes
    behind them, which lie side by side in memory.
    """
    reach = (1 - iou_threshold) * (high - low) + _SLACK * (low.abs() + high.abs())
    behind = torch.arange(_WINDOW, device=low.device)
    low_windows, reach_windows = (pad(each, (0, _WINDOW)).unfold(0, _WINDOW, 1) for each in (low, reach))
    for start in range(0, int(partners.max()) if len(partners) else 0, _WINDOW):
        for first in torch.nonzero(partners > start)[:, 0].split(_ROWS):
            window = first + (start + 1)
            distance = low_windows[window].sub_(low[first, None]).abs_()
            near = distance <= torch.maximum(reach_windows[window], reach[first, None])
            near &= behind < (partners[first] - start)[:, None]
            row, column = torch.nonzero(near, as_tuple=True)
            yield first[row], window[row] + column


def _iou_above(corners: list[Tensor], first: Tensor, second: Tensor, iou_threshold: float) -> Tensor:
    """Which pairs of boxes have an IoU above the threshold [P]."""
    x1, y1, x2, y2 = (each.index_select(0, first) for each in corners)
    u1, v1, u2, v2 = (each.index_select(0, second) for each in corners)
    width = torch.minimum(x2, u2).sub_(torch.maximum(x1, u1)).clamp_(min=0)
    intersection = torch.minimum(y2, v2).sub_(torch.maximum(y1, v1)).clamp_(min=0).mul_(width)
    areas = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1)
    return intersection.div_(areas.sub_(intersection)) > iou_threshold

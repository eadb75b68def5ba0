"""Greedy non-maximum suppression as a sweep along x.

Two boxes whose IoU is above a threshold t start within (1 - t) of a box's width of each other. In the order of their
left sides, the boxes that one has to be compared with therefore lie side by side in memory, behind it, and a binary
search finds how many they are. What is left is a sparse graph of "suppresses", from higher to lower score. In rounds,
boxes that nobody can suppress any more stay, what they suppress goes, and the pairs of both are done with. All segments
go through together. It asks the host for sizes, which is free on a CPU.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

# Neighbours that are compared at a time with those behind them: more would leave the caches.
_ROWS = 512
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
    corners = boxes.flatten(0, 1)[flat].t().contiguous()
    winners, losers = [], []
    for first, second in _pairs_above(corners, partners.clamp_(min=0).flatten(), iou_threshold):
        a, b = flat[first], flat[second]
        winners.append(torch.minimum(a, b))
        losers.append(torch.maximum(a, b))
    if not winners:
        return flat[:0], flat[:0]
    return torch.cat(winners), torch.cat(losers)


def _pairs_above(corners: Tensor, partners: Tensor, iou_threshold: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of a box and one of its `partners` [T], which lie behind it, with an IoU above the threshold, in pieces.

    A few neighbours are compared at a time with a band of the boxes behind each, all of which lie side by side in
    memory: views, not copies. corners: [4, T] by ascending x1.
    """
    most = pad(partners, (0, -len(partners) % _ROWS)).view(-1, _ROWS).amax(dim=1).tolist()
    padded = pad(corners, (0, max(most, default=0)))
    areas = (padded[2] - padded[0]) * (padded[3] - padded[1])
    number = torch.arange(len(partners), device=partners.device)
    for start, width in zip(range(0, len(partners), _ROWS), most, strict=True):
        if width == 0:
            continue
        rows = slice(start, min(start + _ROWS, len(partners)))
        (_, y1, x2, y2), area = corners[:, rows, None], areas[rows, None]
        band = padded[:, start + 1 :].unfold(1, width, 1)[:, : y1.shape[0]]
        overlap = torch.minimum(band[2], x2).sub_(band[0])  # the partner starts later
        height = torch.minimum(band[3], y2).sub_(torch.maximum(band[1], y1)).clamp_(min=0)
        overlap.mul_(height)
        union = torch.add(areas[start + 1 :].unfold(0, width, 1)[: y1.shape[0]], area, out=height).sub_(overlap)
        above = overlap.div_(union) > iou_threshold
        above &= number[:width] < partners[rows, None]
        row, column = torch.nonzero(above, as_tuple=True)
        row += start
        yield row, column.add_(row).add_(1)

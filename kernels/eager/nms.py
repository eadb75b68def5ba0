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

from kernels.rounding import float32_at_most

# Pairs that are compared at a time: fewer, and calling costs more than comparing; more would leave the caches.
_CELLS = 1 << 19
# Rounding of the sweep's bounds, relative to the coordinates; too many pairs do no harm.
_SLACK = 1e-5


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
    winners, losers = _suppressions(boxes, present, iou_threshold)
    nobody = present.numel()
    alive = pad(present.flatten(), (0, 1))
    while len(winners):
        contested = torch.zeros_like(alive)
        contested[losers] = True
        final = ~contested[winners]  # nobody is left to suppress these
        alive[torch.where(final, losers, nobody)] = False
        contest = torch.nonzero(alive[winners] & alive[losers] & ~final).squeeze(1)
        winners, losers = winners[contest], losers[contest]
    return alive[:nobody].view_as(present)


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
    pairs = _pairs_above(corners, partners.clamp_(min=0).flatten(), iou_threshold)
    ranks = [(flat[first], flat[second]) for first, second in pairs]
    if not ranks:
        return flat[:0], flat[:0]
    winners = torch.cat([torch.minimum(first, second) for first, second in ranks])
    return winners, torch.cat([torch.maximum(first, second) for first, second in ranks])


def _pairs_above(corners: Tensor, partners: Tensor, iou_threshold: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of a box and one of its `partners` [T], which lie behind it, with an IoU above the threshold, in pieces.

    A few neighbours are compared at a time with a band of the boxes behind each, all of which lie side by side in
    memory: views, not copies, and always the same buffers, as fresh memory costs as much as the comparison.
    Comparisons give floats, 0 or 1, which is several times as fast as bools. corners: [4, T] by ascending x1.
    """
    widest = int(partners.max())
    rows = min(max(_CELLS // max(widest, 1), 64), len(partners) + 7) // 8 * 8
    partners = pad(partners, (0, -len(partners) % rows)).view(-1, rows)
    widths = partners.amax(dim=1).tolist()
    x1, y1, x2, y2 = corners = pad(corners, (0, partners.numel() - corners.shape[1] + widest))
    padded = torch.stack([*corners, (x2 - x1) * (y2 - y1)])
    reaches = partners[..., None].to(corners.dtype)
    number = torch.arange(widest, dtype=corners.dtype, device=corners.device)
    buffers = corners.new_empty(2, rows * widest)
    flags = torch.empty(rows * widest, dtype=torch.bool, device=corners.device)
    for block, width in enumerate(widths):
        if width == 0:
            continue
        start = block * rows
        _, y1, x2, y2, area = padded[:, start : start + rows, None]
        next_x1, next_y1, next_x2, next_y2, next_area = padded[:, start + 1 : start + rows + width].unfold(1, width, 1)
        overlap, height = buffers[:, : rows * width].view(2, rows, width)
        torch.minimum(next_y2, y2, out=height).sub_(torch.maximum(next_y1, y1, out=overlap)).clamp_(min=0)
        torch.minimum(next_x2, x2, out=overlap).sub_(next_x1).mul_(height)  # its left side is the later one
        overlap.div_(torch.add(next_area, area, out=height).sub_(overlap))
        overlap.gt_(iou_threshold).mul_(torch.lt(number[:width], reaches[block], out=height))
        cell = _nonzero(flags[: rows * width].copy_(overlap.flatten()))
        row = cell.div(width, rounding_mode="floor")
        second = cell.sub_(row, alpha=width - 1).add_(start + 1)
        yield row.add_(start), second


def _nonzero(flags: Tensor) -> Tensor:
    """Where a few of many flags [8 n] are set: eight at a time are looked at first, which is several times as fast."""
    words = flags.view(torch.int64)
    word = torch.nonzero(words).squeeze(1)
    which, place = torch.nonzero(words[word].view(torch.bool).view(-1, 8), as_tuple=True)
    return word[which].mul_(8).add_(place)

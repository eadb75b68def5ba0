"""Matching a chunk of anchors at a time, so that overlaps stay in the cache.

Anchors lie side by side as on the image, so a chunk of them reaches only some of the ground truth. All other overlaps
are exactly 0 and are not computed. The best overlap of each ground truth is known only after the last chunk; of a chunk
its own best is kept, and only chunks that turn out to hold the best of all are looked at again.
"""

import math

import torch
from torch import Tensor

# Anchors that are compared at a time: with many more the overlaps leave the cache, with fewer calls cost more than the
# work. Rows of a power of two would lie on the same lines of the cache when a column is searched for its largest value.
_CHUNK = 4096 + 16


def match_boxes(
    anchors: Tensor, gt_boxes: Tensor, gt_counts: Tensor, with_forced: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.match_boxes`: index [B, N], IoU [B, N] and forced matches [B, N]."""
    images, number = gt_boxes.shape[0], anchors.shape[-2]
    compute = torch.promote_types(torch.promote_types(anchors.dtype, gt_boxes.dtype), torch.float32)
    index = anchors.new_zeros((images, number), dtype=torch.int64)
    best = anchors.new_full((images, number), -1.0, dtype=compute)
    forced = anchors.new_zeros((images, number), dtype=torch.bool)
    chunks: list[_Chunk] = []
    for image, count in enumerate(gt_counts.tolist() if number else []):
        if image == 0 or anchors.ndim == 3:
            some = anchors if anchors.ndim == 2 else anchors[image]
            corners = some.to(compute).t().contiguous()
            chunks = [
                _Chunk(corners[:, first : first + _CHUNK], slice(first, first + _CHUNK))
                for first in range(0, number, _CHUNK)
            ]
        if count:
            gt = gt_boxes[image, :count].to(compute)
            _match(chunks, gt, with_forced, index[image], best[image], forced[image])
    return index, best, forced


class _Chunk:
    """Neighbouring anchors: corners x1, y1, x2, y2 [4, n], areas [n], and what they reach together."""

    def __init__(self, corners: Tensor, where: slice) -> None:
        x1, y1, x2, y2 = corners
        self.corners, self.where = corners, where
        self.areas = (x2 - x1) * (y2 - y1)
        self.have_area = _have_area(self.areas)
        self.low, self.high = corners[:2].amin(dim=1), corners[2:].amax(dim=1)

    def reached(self, gt: Tensor) -> Tensor:
        """Indices of the boxes [G, 4] whose overlap with an anchor may be anything but 0."""
        apart = ((gt[:, :2] >= self.high) | (gt[:, 2:] <= self.low)).any(dim=1)
        return torch.nonzero(~apart)[:, 0]

    def overlaps(self, gt: Tensor, gt_areas: Tensor) -> Tensor:
        """IoU of boxes [G, 4] and anchors [G, n], each step rounded as in the other implementations; 0 for NaN."""
        x1, y1, x2, y2 = self.corners
        u1, v1, u2, v2 = gt[..., None].unbind(1)
        width = torch.minimum(x2, u2).sub_(torch.maximum(x1, u1)).clamp_(min=0)
        intersection = torch.minimum(y2, v2).sub_(torch.maximum(y1, v1)).clamp_(min=0).mul_(width)
        union = torch.add(gt_areas[:, None], self.areas, out=width).sub_(intersection)
        overlaps = intersection.div_(union)
        return overlaps if self.have_area and _have_area(gt_areas) else overlaps.nan_to_num_(0.0)


def _have_area(areas: Tensor) -> bool:
    """Whether all are above 0 and finite, so that no overlap is 0 / 0, of infinity or of NaN."""
    return bool(((areas > 0) & (areas < math.inf)).all())


def _match(chunks: list[_Chunk], gt: Tensor, with_forced: bool, index: Tensor, best: Tensor, forced: Tensor) -> None:
    """Matches one image's anchors to gt [G, 4] with G > 0, into index, best and forced [N]."""
    gt_areas = (gt[:, 2] - gt[:, 0]) * (gt[:, 3] - gt[:, 1])
    of_gt = gt.new_zeros((len(chunks), len(gt)))  # the best overlap of each ground truth in each chunk
    for number, chunk in enumerate(chunks):
        reached = chunk.reached(gt)
        if len(reached) == 0:
            best[chunk.where] = 0.0
            continue
        overlaps = chunk.overlaps(gt[reached], gt_areas[reached])
        if with_forced:
            of_gt[number, reached] = overlaps.amax(dim=1)
        values, rows = overlaps.max(dim=0)
        best[chunk.where] = values
        # Where nothing overlaps, the first of all is as good as any, whether it was reached or not.
        index[chunk.where] = torch.where(values == 0, 0, reached[rows])
    if not with_forced:
        return
    nearest = of_gt.amax(dim=0)
    holds_nearest = (of_gt == nearest) & (nearest > 0)
    for number in torch.nonzero(holds_nearest.any(dim=1))[:, 0].tolist():
        some = torch.nonzero(holds_nearest[number])[:, 0]
        overlaps = chunks[number].overlaps(gt[some], gt_areas[some])
        forced[chunks[number].where] = (overlaps == nearest[some, None]).any(dim=0)

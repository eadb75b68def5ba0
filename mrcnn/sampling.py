"""Which anchors and RoIs are trained on: matching to the ground truth, and random sampling at a fixed size."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import match_boxes

IGNORED = -1
NEGATIVE = 0
POSITIVE = 1


@dataclass(frozen=True)
class Match:
    """What each of N boxes of each of B images is trained to be."""

    gt_index: Tensor  # [B, N] the ground truth that overlaps most
    kind: Tensor  # [B, N] POSITIVE, NEGATIVE or IGNORED


def match(
    boxes: Tensor,
    gt_boxes: Tensor,
    gt_counts: Tensor,
    fg_iou: float,
    bg_iou: float,
    *,
    force_best: bool = False,
) -> Match:
    """Matches boxes [N, 4] or [B, N, 4] to the first gt_counts [B] of gt_boxes [B, G, 4] (Faster R-CNN, section 3.1.2).

    A box is positive if its IoU with some ground truth is at least `fg_iou`, negative if with all it is below
    `bg_iou`, else ignored. With `force_best`, the boxes nearest to each ground truth are positive as well.
    """
    gt_index, overlap, forced = match_boxes(boxes, gt_boxes, gt_counts, with_forced=force_best)
    unclear = torch.where(overlap < bg_iou, NEGATIVE, IGNORED)
    return Match(gt_index=gt_index, kind=torch.where((overlap >= fg_iou) | forced, POSITIVE, unclear))


@dataclass(frozen=True)
class Sample:
    """A fixed number S of the boxes of each image, positives first."""

    index: Tensor  # [B, S] which boxes
    positive: Tensor  # [B, S] bool
    weight: Tensor  # [B, S] 1, or 0 for places left over


def sample(kind: Tensor, size: int, positive_fraction: float) -> Sample:
    """Draws `size` boxes of each image from kind [B, N], at most the given fraction of them positive.

    Fewer positives are made up for by negatives. Positives take the first places, of which there are
    int(size * positive_fraction).
    """
    number = kind.shape[1]
    most_positive = min(int(size * positive_fraction), number)
    size = min(size, number)
    chance = torch.rand(kind.shape, device=kind.device)
    # One draw orders both kinds; what is of the other kind comes last.
    positives = torch.topk(torch.where(kind == POSITIVE, chance, -1.0), most_positive, dim=1).indices
    negatives = torch.topk(torch.where(kind == NEGATIVE, chance, -1.0), size, dim=1).indices
    num_positive = (kind == POSITIVE).sum(dim=1, keepdim=True).clamp(max=most_positive)
    num_negative = (kind == NEGATIVE).sum(dim=1, keepdim=True)
    place = torch.arange(size, device=kind.device).expand(kind.shape[0], -1)
    positive = place < num_positive
    source = torch.where(positive, place, most_positive + place - num_positive)
    index = torch.cat([positives, negatives], dim=1).gather(1, source.clamp(max=most_positive + size - 1))
    weight = (place < num_positive + num_negative).to(torch.float32)
    return Sample(index=index, positive=positive, weight=weight)

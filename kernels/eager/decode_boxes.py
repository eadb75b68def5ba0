"""Boxes from offsets, both axes at a time."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MAX_LOG_SCALE = math.log(1000 / 16)


def decode_boxes(
    offsets: Tensor,
    anchors: Tensor,
    scores: Tensor,
    image_sizes: Tensor,
    counts: Tensor | None,
    weights: Sequence[float],
    min_size: float,
    score_threshold: float,
) -> tuple[Tensor, Tensor]:
    """See `kernels.decode_boxes`: offsets and anchors [B, S, N, 4], scores [B, S, N]; boxes and scores."""
    compute = torch.promote_types(torch.promote_types(offsets.dtype, anchors.dtype), torch.float32)
    low, high = anchors.to(compute).split(2, dim=-1)
    size = high - low
    shift, scale = (offsets.to(compute) / offsets.new_tensor(weights, dtype=compute)).split(2, dim=-1)
    center = (shift * size).add_(torch.add(low, size, alpha=0.5))
    half = scale.clamp(max=_MAX_LOG_SCALE).exp_().mul_(size).mul_(0.5)
    limit = image_sizes.flip(1).to(compute)[:, None, None]
    boxes = offsets.new_empty(offsets.shape, dtype=compute)
    new_low, new_high = boxes.split(2, dim=-1)
    torch.sub(center, half, out=new_low)
    torch.add(center, half, out=new_high)
    torch.minimum(boxes.clamp_(min=0), limit.repeat(1, 1, 1, 2), out=boxes)
    left, top, right, bottom = boxes.unbind(dim=-1)
    good = (right - left >= min_size) & (bottom - top >= min_size)
    good &= scores.to(torch.promote_types(scores.dtype, torch.float32)) > score_threshold
    if counts is not None:
        good &= torch.arange(scores.shape[2], device=scores.device) < counts[:, None, None]
    return boxes, scores.contiguous().masked_fill(~good, -math.inf)

"""Boxes from offsets, one formula a line."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


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
    x1, y1, x2, y2 = anchors.to(compute).unbind(dim=-1)
    dx, dy, dw, dh = (part / weight for part, weight in zip(offsets.to(compute).unbind(dim=-1), weights, strict=True))
    width, height = x2 - x1, y2 - y1
    center_x = (x1 + 0.5 * width) + dx * width
    center_y = (y1 + 0.5 * height) + dy * height
    most = math.log(1000 / 16)
    new_width = torch.exp(dw.clamp(max=most)) * width
    new_height = torch.exp(dh.clamp(max=most)) * height
    limit_y, limit_x = image_sizes.to(compute)[:, None, None].unbind(dim=-1)
    zero = torch.zeros_like(limit_x)
    left = torch.minimum(torch.maximum(center_x - 0.5 * new_width, zero), limit_x)
    top = torch.minimum(torch.maximum(center_y - 0.5 * new_height, zero), limit_y)
    right = torch.minimum(torch.maximum(center_x + 0.5 * new_width, zero), limit_x)
    bottom = torch.minimum(torch.maximum(center_y + 0.5 * new_height, zero), limit_y)
    good = (right - left >= min_size) & (bottom - top >= min_size)
    good &= scores.to(torch.promote_types(scores.dtype, torch.float32)) > score_threshold
    for image, count in enumerate(counts.tolist() if counts is not None else []):
        good[image, :, max(count, 0) :] = False
    boxes = torch.stack([left, top, right, bottom], dim=-1)
    return boxes, torch.where(good, scores, -math.inf).contiguous()

"""Keypoints out of heatmaps: bicubic resizing is separable, so each box is two matrix products."""

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_LONGEST = 32768


def decode_keypoints(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.decode_keypoints`. heatmaps: [K, N, H, W], boxes: [K, 4]; keypoints [K, N, 3], scores [K, N]."""
    compute = torch.promote_types(heatmaps.dtype, torch.float32)
    keypoints = heatmaps.new_zeros((*heatmaps.shape[:2], 3), dtype=compute)
    scores = heatmaps.new_zeros(heatmaps.shape[:2], dtype=compute)
    heatmaps, boxes = heatmaps.to(compute), boxes.to(compute)
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    usable = boxes.isfinite().all(dim=1) & (sides <= _LONGEST).all(dim=1)
    regular = heatmaps.isfinite().flatten(1).all(dim=1).tolist()
    for roi in torch.nonzero(usable).flatten().tolist():
        width, height = (math.ceil(side) for side in sides[roi].tolist())
        if regular[roi]:
            rows, columns = (
                _weights(*pair, heatmaps) for pair in zip((height, width), heatmaps.shape[2:], strict=True)
            )
            resized = torch.matmul(torch.matmul(rows, heatmaps[roi]), columns.t())
        else:  # a sum over a whole row would spread what is not finite
            resized = interpolate(heatmaps[roi, None], size=(height, width), mode="bicubic", align_corners=False)[0]
        scores[roi], place = resized.flatten(1).max(dim=1)
        at = torch.stack([place % width, place.div(width, rounding_mode="floor")], dim=1).to(compute) + 0.5
        pixel = sides[roi] / torch.tensor([width, height], dtype=compute, device=boxes.device)
        keypoints[roi, :, :2] = at * pixel + boxes[roi, :2]
        keypoints[roi, :, 2] = 1
    return keypoints, scores


def _weights(length: int, size: int, like: Tensor) -> Tensor:
    """Weights [length, size] of the pixels of a heatmap's axis for each pixel of the box (Keys, 1981, a = -0.75)."""
    # Pixel p lies at (p + 1/2) size / length - 1/2: in whole numbers, so that only the parts are rounded.
    place = (2 * torch.arange(length, device=like.device) + 1) * size - length
    before = place.div(2 * length, rounding_mode="floor")
    part = place.remainder(2 * length).to(like.dtype) / (2 * length)
    rest = 1 - part
    weights = like.new_zeros((length, size))
    for tap, weight in zip(range(-1, 3), (_far(part, rest), _near(part), _near(rest), _far(rest, part)), strict=True):
        index = (before + tap).clamp(0, size - 1)
        weights.scatter_add_(1, index[:, None], weight[:, None])
    return weights


def _near(distance: Tensor) -> Tensor:
    """Cubic weight up to a pixel away."""
    return (1.25 * distance - 2.25) * distance * distance + 1


def _far(beyond: Tensor, rest: Tensor) -> Tensor:
    """Cubic weight 1 + `beyond` = 2 - `rest` pixels away: as factors, as terms of up to 6 would cancel."""
    return -0.75 * beyond * rest * rest

"""Box arithmetic; boxes are x1, y1, x2, y2 in the last dimension."""

import math

import torch
from torch import Tensor

# Limits the growth of a box in one step to 1000 / 16, so that exp cannot overflow.
_MAX_LOG_SCALE = math.log(1000.0 / 16)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is too coarse for boxes and scores; float64 stays, for verification."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Offsets [..., 4] from anchors to boxes (R-CNN, appendix C): dx, dy, dw, dh times `weights`."""
    size, center = _size_and_center(anchors)
    box_size, box_center = _size_and_center(boxes)
    shift = (box_center - center) / size
    scale = torch.log(box_size / size)
    return torch.cat([shift, scale], dim=-1) * boxes.new_tensor(weights)


def decode(offsets: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Boxes [..., 4] that lie at `offsets` from anchors; the inverse of `encode`."""
    size, center = _size_and_center(anchors)
    shift, scale = (offsets / offsets.new_tensor(weights)).split(2, dim=-1)
    center = shift * size + center
    half = torch.exp(scale.clamp(max=_MAX_LOG_SCALE)) * size * 0.5
    return torch.cat([center - half, center + half], dim=-1)


def _size_and_center(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height, and the centre, [..., 2] each."""
    low, high = boxes.split(2, dim=-1)
    size = high - low
    return size, low + 0.5 * size


def clip(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Boxes [B, N, 4] limited to images of height and width image_sizes [B, 2]."""
    limit = image_sizes.flip(1).to(boxes.dtype).repeat(1, 2)[:, None]
    return torch.minimum(boxes.clamp(min=0), limit)


def at_least(boxes: Tensor, min_size: float) -> Tensor:
    """Whether both sides of a box have at least this length [...]."""
    low, high = boxes.split(2, dim=-1)
    large: Tensor = (high - low >= min_size).all(dim=-1)
    return large

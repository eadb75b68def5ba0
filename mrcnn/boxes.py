"""Box arithmetic; boxes are x1, y1, x2, y2 in the last dimension."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is too coarse for boxes and scores; float64 stays, for verification."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Offsets [..., 4] from anchors to boxes (R-CNN, appendix C): dx, dy, dw, dh times `weights`.

    `kernels.decode_boxes` is the inverse.
    """
    size, center = _size_and_center(anchors)
    box_size, box_center = _size_and_center(boxes)
    shift = (box_center - center) / size
    scale = torch.log(box_size / size)
    return torch.cat([shift, scale], dim=-1) * boxes.new_tensor(weights)


def _size_and_center(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height, and the centre, [..., 2] each."""
    low, high = boxes.split(2, dim=-1)
    size = high - low
    return size, low + 0.5 * size

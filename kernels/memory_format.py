"""Tensors in one of the two memory formats of images."""

from collections.abc import Sequence

import torch
from torch import Tensor


def empty_map(like: Tensor, shape: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    """An unwritten [N, C, H, W] on the device of `like`, and in its dtype if none is given."""
    number, channels, height, width = shape
    if not channels_last:
        return like.new_empty((number, channels, height, width), dtype=dtype)
    return like.new_empty((number, height, width, channels), dtype=dtype).permute(0, 3, 1, 2)

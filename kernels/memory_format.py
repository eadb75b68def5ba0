"""Tensors in one of the two memory formats of images."""

from collections.abc import Sequence

import torch
from torch import Tensor


def is_channels_last(map: Tensor) -> bool:
    """Whether an operation reads [N, C, H, W], and writes what belongs to it, channels last: what is not contiguous.

    Where both formats are the same bytes, of one pixel or one channel, that is contiguous, whatever the strides.
    """
    return not map.is_contiguous() and map.shape[1] != 1 and (map.shape[2] != 1 or map.shape[3] != 1)


def dense(map: Tensor, channels_last: bool) -> Tensor:
    """The map itself if its memory has no gaps and is in the format, else a copy.

    For inside an operation: an exported graph may be given other strides than those it was traced with.
    """
    return map.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def empty_map(like: Tensor, shape: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    """An unwritten [N, C, H, W] on the device of `like`, and in its dtype if none is given."""
    number, channels, height, width = shape
    if not channels_last:
        return like.new_empty((number, channels, height, width), dtype=dtype)
    return like.new_empty((number, height, width, channels), dtype=dtype).permute(0, 3, 1, 2)

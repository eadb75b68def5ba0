"""Tensors in one of the two memory formats of images."""

from collections.abc import Sequence

import torch
from torch import Tensor


def taken_channels_last(features: Tensor) -> bool:
    """Whether an operation reads [N, C, H, W], and writes what belongs to it, channels last.

    So it does with all that is not contiguous, a crop or an expansion too. Where both formats are the same bytes, of
    one pixel or one channel, it is contiguous, whatever the strides.
    """
    _, channels, height, width = features.shape
    return not features.is_contiguous() and channels != 1 and (height != 1 or width != 1)


def dense(features: Tensor, channels_last: bool) -> Tensor:
    """The features themselves if their memory has no gaps and is in the format, else a copy.

    For inside an operation: an exported graph may be given other strides than those it was traced with.
    """
    return features.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def empty_map(like: Tensor, shape: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    """An unwritten [N, C, H, W] on the device of `like`, and in its dtype if none is given."""
    number, channels, height, width = shape
    if not channels_last:
        return like.new_empty((number, channels, height, width), dtype=dtype)
    return like.new_empty((number, height, width, channels), dtype=dtype).permute(0, 3, 1, 2)

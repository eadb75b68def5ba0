"""What public functions ask of their arguments, and the words in which they refuse them.

All but `check_values` looks at kinds, shapes and numbers: it costs little and can be traced.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
INDEX = (torch.int64,)

_MOST_SAMPLES = 128  # along an axis of a bin: memory on a CPU, and a kernel's time, grow with them


def check_tensor(
    name: str,
    value: Any,
    *shapes: tuple[int | str, ...],
    dtypes: Sequence[torch.dtype] = FLOATS,
    device: torch.device | None = None,
    filled: tuple[str, ...] = (),
) -> None:
    """
    Args:
        shapes: any of these will do, and any at all if none is given; a letter is any size, the same wherever it comes.
        device: None for any.
        filled: letters of sizes that must be at least 1.
    """
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        kind = value.layout if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} is of kind {kind}; it must be a dense tensor")
    shape, fits = value.shape, len(shapes) == 0
    for wanted in shapes:
        fits = fits or shape == wanted or _fits(shape, wanted, filled)
    if not fits or value.dtype not in dtypes:
        wishes = " or ".join(" x ".join(map(str, wanted)) for wanted in shapes) or "of any shape"
        kinds = " or ".join(map(str, dtypes)).replace("torch.", "")
        least = f", {' and '.join(filled)} at least 1" if filled else ""
        raise ValueError(f"{name} is {tuple(shape)} in {value.dtype}; it must be {wishes} in {kinds}{least}")
    if device is not None and value.device != device:
        raise ValueError(f"{name} is on {value.device}; it must be on {device}, as the rest")


def _fits(shape: Sequence[int], wanted: tuple[int | str, ...], filled: tuple[str, ...]) -> bool:
    if len(shape) != len(wanted):
        return False
    sizes: dict[str, int] = {}
    for size, want in zip(shape, wanted, strict=True):
        if isinstance(want, str):
            if want in filled and size < 1:  # in this order: a trace may not know the size
                return False
            want = sizes.setdefault(want, size)
        if size != want:
            return False
    return True


def is_whole(value: Any) -> bool:
    """An integer of Python, numpy or a trace. A bool is one in the wrong place, and a tensor would be waited for."""
    return isinstance(value, (int, torch.SymInt, Integral)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """The same of numbers."""
    return isinstance(value, (float, int, torch.SymFloat, torch.SymInt, Real)) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """A finite number above 0."""
    return is_number(value) and 0 < value < math.inf


def check_whole(name: str, value: Any, least: int | None = None) -> None:
    """A whole number, `least` or more."""
    if not is_whole(value) or (least is not None and value < least):
        range_ = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name} is {value!r}; it must be a whole number{range_}")


def check_flag(name: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {value!r}; it must be True or False")


def check_number(name: str, value: Any, least: float, most: float = math.inf) -> None:
    """A number, not NaN, from `least` to `most`."""
    if not is_number(value) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; it must be a number from {least} to {most}")


def check_positive(name: str, value: Any) -> None:
    """A finite number above 0."""
    if not is_positive(value):
        raise ValueError(f"{name} is {value!r}; it must be a finite number above 0")


def is_list(value: Any) -> bool:
    """Of Python or numpy; text is none."""
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))


def check_size(name: str, value: Any) -> None:
    """Height and width."""
    if not is_list(value) or len(value) != 2 or not all(is_whole(side) and side >= 1 for side in value):
        raise ValueError(f"{name} is {value!r}; it must be a height and a width, whole numbers of at least 1")


def check_sampling_ratio(value: Any) -> None:
    """See `kernels.roi_align`."""
    if not is_whole(value) or value > _MOST_SAMPLES:
        raise ValueError(f"sampling_ratio is {value!r}; it must be a whole number of at most {_MOST_SAMPLES}")


def check_values(name: str, values: Tensor, least: float, most: float, used: Tensor | None = None) -> None:
    """Values, those that are `used`, from `least` to `most`; only where `values_may_be_read`."""
    if not values.is_floating_point():
        values = values.long()  # a limit would be rounded to fewer bits
    good = (values >= least) & (values <= most)
    if used is not None:
        good |= ~used
    if not good.all():
        raise ValueError(f"{name} holds {values[~good][0].item()}; it must be from {least} to {most}")

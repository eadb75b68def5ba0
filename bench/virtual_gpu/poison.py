"""Patterns for memory that was allocated and not written: an element that keeps one was written by nobody.

Floating-point elements get a NaN with a rare payload, so that arithmetic on them shows too. Integers and booleans get
the bytes 0xA5, which is a possible value: of two runs with different patterns only an unwritten element is poison in
both.
"""

import torch
from torch import Tensor

PATTERN = 0xA5
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def poison(tensor: Tensor, pattern: int = PATTERN) -> None:
    """Fills a dense tensor with the pattern."""
    words, value = _as_words(tensor, pattern)
    words.fill_(value)


def unwritten(tensor: Tensor, pattern: int = PATTERN) -> Tensor:
    """Which elements still hold the pattern; bool, of the tensor's shape."""
    words, value = _as_words(tensor, pattern)
    found = words == value
    return found.view(*tensor.shape, -1).all(-1) if tensor.is_complex() else found


def _as_words(tensor: Tensor, pattern: int) -> tuple[Tensor, int]:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    size = tensor.element_size()
    bits = int.from_bytes(bytes([pattern] * size), "little")
    if tensor.is_floating_point() and size > 1:
        # The sign, the exponent and the quiet bit of every format lie in the upper 16 bits of this.
        bits |= 0xFFF8 << (8 * size - 16)
    if size > 1 and bits >> (8 * size - 1):
        bits -= 1 << 8 * size
    return tensor.view(_WORDS[size]), bits

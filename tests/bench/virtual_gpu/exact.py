"""Oracles in exact arithmetic: rational numbers, and their rounding to floating-point formats."""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor


@dataclass(frozen=True)
class Format:
    """A binary format: bits of the significand with the hidden one; exponents of the least normal and the largest."""

    dtype: torch.dtype
    precision: int
    least: int
    most: int


F16 = Format(torch.float16, 11, -14, 15)
BF16 = Format(torch.bfloat16, 8, -126, 127)
F32 = Format(torch.float32, 24, -126, 127)
F64 = Format(torch.float64, 53, -1022, 1023)


def integral(x: Fraction, mode: str) -> int:
    """x rounded to an integer: n(earest even), z(ero), m(inus infinity), p(lus infinity)."""
    return {"n": round, "z": math.trunc, "m": math.floor, "p": math.ceil}[mode](x)


def rounded(x: Fraction, to: Format, mode: str = "n") -> float:
    """x rounded to a format, as a Python float; infinite where it overflows and the mode says so."""
    if x == 0:
        return 0.0
    size = abs(x)
    exponent = max(_exponent(size), to.least)
    unit = Fraction(2) ** (exponent - to.precision + 1)
    result = integral(x / unit, mode) * unit
    largest = (2 - Fraction(2) ** (1 - to.precision)) * Fraction(2) ** to.most
    if abs(result) <= largest:
        return float(abs(result)) * (1 if x > 0 else -1)  # -0 where a negative number rounds to nothing
    away = mode == "n" or (mode == "p" and x > 0) or (mode == "m" and x < 0)
    return (math.inf if away else float(largest)) * (1 if x > 0 else -1)


def _exponent(size: Fraction) -> int:
    guess = size.numerator.bit_length() - size.denominator.bit_length()
    return guess if Fraction(2) ** guess <= size else guess - 1


def fractions(x: Tensor) -> list[Fraction]:
    return [Fraction(value) for value in x.double().tolist()]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in every bit, but for the bits of NaN."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    both_nan = a.isnan() & b.isnan() if a.is_floating_point() else torch.zeros(a.shape, dtype=torch.bool)
    return bool((both_nan | (a.view(words) == b.view(words))).all())

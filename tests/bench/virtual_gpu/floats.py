"""Numbers to test floating-point instructions with, and how to run one on them."""

import math
from fractions import Fraction

import torch
from elementwise import elementwise
from exact import BF16, F16, F32, F64, Format, rounded, same_bits
from torch import Tensor

from bench.virtual_gpu import Options

FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
MODES = {"rn": "n", "rz": "z", "rm": "m", "rp": "p"}
SIZES = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64}


def numbers(dtype: torch.dtype, seed: int, count: int = 160) -> Tensor:
    """Finite numbers: subnormal, tiny, near one, near each other, large; and their opposites."""
    generator = torch.Generator().manual_seed(seed)
    info = torch.finfo(dtype)
    near_one = 1 + torch.randint(-20, 20, (40,), generator=generator).double() * info.eps
    plain = torch.randn(60, generator=generator, dtype=torch.float64) * 3
    spread = torch.randn(30, generator=generator, dtype=torch.float64) * 2.0 ** torch.randint(
        -12, 12, (30,), generator=generator
    )
    ends = [0.0, -0.0, info.tiny, -info.tiny, info.tiny / 4, info.max, -info.max, 0.5, 1.5, 2.5, -2.5]
    some = [near_one, plain, spread, torch.tensor(ends, dtype=torch.float64), -near_one]
    return torch.cat(some)[:count].to(dtype)


def special(x: Tensor) -> Tensor:
    return torch.cat([x, torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0]).to(x.dtype)])


def binary(instruction: str, a: Tensor, b: Tensor, options: Options | None = None) -> Tensor:
    bits = 8 * a.element_size()
    body = f".reg .b{bits} %y0; {instruction} %y0, %x0, %x1;"
    return elementwise(body, [a, b], [a.dtype], options)[0]


def unary(instruction: str, a: Tensor, options: Options | None = None) -> Tensor:
    body = f".reg .b{8 * a.element_size()} %y0; {instruction} %y0, %x0;"
    return elementwise(body, [a], [a.dtype], options)[0]


def expected(format: Format, results: list[Fraction], mode: str) -> Tensor:
    return torch.tensor([rounded(each, format, mode) for each in results], dtype=torch.float64).to(format.dtype)


def assert_same_but_for_zeros(seen: Tensor, wanted: Tensor) -> None:
    """The sign of a zero result follows rules of its own, which are tested by themselves."""
    zero = (seen == 0) & (wanted == 0)
    assert same_bits(torch.where(zero, 0, seen), torch.where(zero, 0, wanted))

"""Floating-point arithmetic against exact arithmetic, and approximations against their documented bounds."""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from elementwise import elementwise
from exact import fractions, same_bits
from floats import FORMATS, MODES, SIZES, assert_same_but_for_zeros, binary, expected, numbers, special, unary
from torch import Tensor

from bench.virtual_gpu import Options
from bench.virtual_gpu.launch import Rounding

pytestmark = pytest.mark.compiled

OPERATIONS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_arithmetic_rounds_as_it_says(kind: str, name: str) -> None:
    format = FORMATS[kind]
    a, b = numbers(format.dtype, 0), numbers(format.dtype, 1).flip(0)
    exact = [OPERATIONS[name](x, y) for x, y in zip(fractions(a), fractions(b), strict=True)]
    modes = ["rn"] if kind in ("f16", "bf16") else list(MODES)
    for mode in modes:
        seen = binary(f"{name}.{mode}.{kind}", a, b)
        assert_same_but_for_zeros(seen, expected(format, exact, MODES[mode]))


@pytest.mark.parametrize("kind", FORMATS)
def test_fused_multiply_add_rounds_once(kind: str) -> None:
    format = FORMATS[kind]
    a, b, c = (numbers(format.dtype, seed).roll(11 * seed) for seed in range(3))
    # Halfway cases, which rounding twice gets wrong: a product just beside the middle of two neighbours of c.
    c[:40] = (1 / torch.finfo(format.dtype).eps) * torch.arange(1, 41).to(c.dtype) / 8
    exact = [x * y + z for x, y, z in zip(*map(fractions, (a, b, c)), strict=True)]
    body = f".reg .b{SIZES[kind]} %y0; fma.MODE.{kind} %y0, %x0, %x1, %x2;"
    for mode in ["rn"] if kind in ("f16", "bf16") else list(MODES):
        (seen,) = elementwise(body.replace("MODE", mode), [a, b, c], [format.dtype])
        assert_same_but_for_zeros(seen, expected(format, exact, MODES[mode]))


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("mode", MODES)
def test_division_and_square_root(kind: str, mode: str) -> None:
    format = FORMATS[kind]
    a, b = numbers(format.dtype, 3), numbers(format.dtype, 4)
    b = torch.where(b == 0, 3, b)
    pairs = list(zip(fractions(a), fractions(b), strict=True))
    assert_same_but_for_zeros(
        binary(f"div.{mode}.{kind}", a, b), expected(format, [x / y for x, y in pairs], MODES[mode])
    )
    assert_same_but_for_zeros(unary(f"rcp.{mode}.{kind}", b), expected(format, [1 / y for _, y in pairs], MODES[mode]))
    roots = unary(f"sqrt.{mode}.{kind}", a.abs())
    for x, root in zip(fractions(a.abs()), roots, strict=True):
        below, above = torch.nextafter(root, -torch.ones_like(root)), torch.nextafter(root, root + math.inf)
        low, middle, high = (Fraction(each.item()) for each in (below, root, above))
        if mode == "rn":
            assert x == 0 or ((low + middle) / 2) ** 2 <= x <= ((middle + high) / 2) ** 2
        elif mode == "rp":
            assert x == 0 or low**2 < x <= middle**2
        else:
            assert middle**2 <= x < high**2


@pytest.mark.parametrize("kind", FORMATS)
def test_special_values(kind: str) -> None:
    """Infinities, NaN and signed zeros as IEEE 754 has them, here by way of PyTorch."""
    dtype = FORMATS[kind].dtype
    some = special(torch.tensor([1.5, -2.0], dtype=dtype))
    a, b = (each.reshape(-1) for each in torch.meshgrid(some, some, indexing="ij"))
    assert same_bits(binary(f"add.rn.{kind}", a, b), a + b)
    assert same_bits(binary(f"sub.rn.{kind}", a, b), a - b)
    assert same_bits(binary(f"mul.rn.{kind}", a, b), a * b)
    if kind in ("f32", "f64"):
        assert same_bits(binary(f"div.rn.{kind}", a, b), a / b)
    assert same_bits(unary(f"abs.{kind}", a), a.abs())
    assert same_bits(unary(f"neg.{kind}", a), -a)
    if kind in ("f32", "f64"):
        assert same_bits(binary(f"copysign.{kind}", a, b), torch.copysign(b, a))


@pytest.mark.parametrize("name", ["add.rn", "sub.rz", "mul.rn", "div.rn", "min", "max.NaN"])
def test_there_is_one_nan_of_arithmetic(name: str) -> None:
    """PTX: 0x7fffffff in f32, whatever the operands' bits; a sign that is changed leaves them."""
    first = torch.tensor([0x7FC00001, -0x400000 + 5, 0x7F800001, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    second = first.flip(0)
    assert binary(f"{name}.f32", first, second).view(torch.int32).tolist() == [0x7FFFFFFF] * 4
    body = ".reg .b32 %y0; fma.rn.f32 %y0, %x0, %x1, %x1;"
    assert elementwise(body, [first, torch.ones(4)], [torch.float32])[0].view(torch.int32).tolist() == [0x7FFFFFFF] * 4
    assert unary("neg.f32", first).view(torch.int32).tolist() == (first.view(torch.int32) ^ -(2**31)).tolist()


@pytest.mark.parametrize("kind", FORMATS)
def test_extremes(kind: str) -> None:
    """A number wins over NaN unless .NaN is asked for; -0 is less than +0."""
    dtype = FORMATS[kind].dtype
    some = special(torch.tensor([1.5, -2.0, 1.0], dtype=dtype))
    a, b = (each.reshape(-1) for each in torch.meshgrid(some, some, indexing="ij"))
    for name, wins in (("min", torch.fmin), ("max", torch.fmax)):
        zeros = (a == 0) & (b == 0)
        minus = a.signbit() | b.signbit() if name == "min" else a.signbit() & b.signbit()
        wanted = torch.where(zeros, torch.where(minus, -0.0, 0.0), wins(a.double(), b.double())).to(dtype)
        assert same_bits(binary(f"{name}.{kind}", a, b), wanted)
        propagated = torch.where(a.isnan() | b.isnan(), torch.nan, wanted)
        if kind != "f64":
            assert same_bits(binary(f"{name}.NaN.{kind}", a, b), propagated.to(dtype))


@pytest.mark.parametrize("kind", FORMATS)
def test_comparisons(kind: str) -> None:
    dtype = FORMATS[kind].dtype
    some = special(torch.tensor([1.5, -2.0], dtype=dtype))
    a, b = (each.reshape(-1) for each in torch.meshgrid(some, some, indexing="ij"))
    unordered = a.isnan() | b.isnan()
    ordered = {"eq": a == b, "ne": (a < b) | (a > b), "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    wanted = {**ordered, **{f"{name}u": truth | unordered for name, truth in ordered.items()}}
    wanted.update({"num": ~unordered, "nan": unordered})
    for name, truth in wanted.items():
        body = f".reg .b32 %y0; setp.{name}.{kind} %p1, %x0, %x1; selp.u32 %y0, 1, 0, %p1;"
        (seen,) = elementwise(body, [a, b], [torch.int32])
        assert seen.bool().equal(truth), name
        if kind == "f32":
            (seen,) = elementwise(f".reg .b32 %y0; set.{name}.f32.f32 %y0, %x0, %x1;", [a, b], [torch.float32])
            assert seen.equal(truth.float()), name


def test_flushing_of_subnormal_numbers() -> None:
    tiny = torch.finfo(torch.float32).tiny
    a = torch.tensor([tiny / 2, -tiny / 2, tiny, 1.0, tiny])
    b = torch.tensor([1.0, -tiny / 4, -tiny / 2, tiny / 2, 0.5])
    assert binary("add.ftz.f32", a, b).tolist() == [1.0, 0.0, tiny, 1.0, tiny + 0.5]
    assert binary("mul.ftz.f32", a, b).tolist() == [0.0, 0.0, 0.0, 0.0, 0.0]
    assert binary("mul.rn.f32", a, b)[4] == tiny / 2
    assert unary("abs.ftz.f32", a).tolist() == [0.0, 0.0, tiny, 1.0, tiny]


@pytest.mark.parametrize("kind", ["f16x2", "bf16x2", "f32x2"])
def test_packed_arithmetic_is_that_of_its_halves(kind: str) -> None:
    single, dtype = kind.removesuffix("x2"), FORMATS[kind.removesuffix("x2")].dtype
    a, b, c = (special(numbers(dtype, seed, 123)).roll(5 * seed) for seed in range(3))
    wide = torch.int32 if dtype.itemsize == 2 else torch.int64
    packed = [each.view(wide) for each in (a, b, c)]
    names = ["add.rn", "sub.rn", "mul.rn", "fma.rn"] + (
        [] if kind == "f32x2" else ["min", "max", "min.NaN", "neg", "abs"]
    )
    for name in names:
        count = 3 if name == "fma.rn" else 1 if name in ("neg", "abs") else 2
        operands = ", ".join(f"%x{i}" for i in range(count))
        body = ".reg .bWIDTH %y0; NAME.KIND %y0, OPERANDS;".replace("NAME", name).replace("OPERANDS", operands)
        bits = 8 * wide.itemsize
        (together,) = elementwise(body.replace("WIDTH", str(bits)).replace("KIND", kind), packed[:count], [wide])
        (apart,) = elementwise(
            body.replace("WIDTH", str(bits // 2)).replace("KIND", single), [a, b, c][:count], [dtype]
        )
        assert same_bits(together.view(dtype), apart), name


BOUNDS: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    # (the function, relative bound, absolute bound) of the PTX ISA
    "rcp.approx.f32": (lambda x: 1 / x, 2**-23, 0),
    "sqrt.approx.f32": (lambda x: x.abs().sqrt(), 2**-23, 0),
    "rsqrt.approx.f32": (lambda x: x.abs().rsqrt(), 2**-22.9, 0),
    "ex2.approx.f32": (torch.exp2, 2**-22.5, 0),
    "lg2.approx.f32": (lambda x: x.abs().log2(), 2**-22, 2**-22),
    "sin.approx.f32": (torch.sin, 0, 2**-20.5),
    "cos.approx.f32": (torch.cos, 0, 2**-20.5),
    "tanh.approx.f32": (torch.tanh, 2**-11, 0),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_approximations_reach_both_ends_of_their_error(name: str) -> None:
    function, relative, absolute = BOUNDS[name]
    x = torch.randn(300, generator=torch.Generator().manual_seed(11))
    argument = x.abs() if "sqrt" in name or "lg2" in name else x
    exact = function(argument.double())
    slack = exact.abs() * relative * (2 if "rcp" in name else 1) + absolute  # an ulp is up to 2^-23 of the value
    ends: list[Rounding] = ["nearest", "low", "high"]
    seen = {end: unary(name, argument, Options(rounding=end)).double() for end in ends}
    half = torch.finfo(torch.float32).eps / 2
    assert bool(((seen["nearest"] - exact).abs() <= exact.abs() * half + 1e-45).all())
    for end, sign in zip(ends[1:], (-1, 1), strict=True):
        error = (seen[end] - exact) * sign
        assert bool((error <= slack * (1 + 1e-9)).all()), end
        assert bool((error >= 0).all()), end
        assert bool((seen[end] != seen["nearest"]).any()), end
    assert bool((seen["low"] < seen["high"]).any())


@pytest.mark.parametrize("name", ["div.full.f32", "div.approx.f32"])
def test_approximate_division_is_off_by_up_to_two_units(name: str) -> None:
    a, b = numbers(torch.float32, 12, 130), numbers(torch.float32, 13, 130)
    normal = (a.abs() < 1e18) & (a.abs() > 1e-18) & (b.abs() > 1e-18) & (b.abs() < 1e18)
    a, b = a[normal], b[normal]
    exact = a / b
    assert binary(name, a, b).equal(exact)
    infinity = torch.full_like(exact, math.inf)
    ends: list[tuple[Rounding, Tensor]] = [("low", -infinity), ("high", infinity)]
    for end, towards in ends:
        seen = binary(name, a, b, Options(rounding=end))
        two = torch.nextafter(torch.nextafter(exact, towards), towards)
        one_more = torch.nextafter(two, towards)
        assert bool(((seen == two) | (seen == one_more) | (seen == torch.nextafter(exact, towards))).all())
        assert bool(((seen.double() - a.double() / b.double()).abs() / exact.abs() <= 2**-22).all())

"""cvt against exact arithmetic: rounding, saturation, NaN."""

import math
from fractions import Fraction

import pytest
import torch
from elementwise import elementwise
from exact import fractions, integral, same_bits
from floats import FORMATS, MODES, SIZES, assert_same_but_for_zeros, expected, numbers, special

pytestmark = pytest.mark.compiled


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_conversion_between_formats(source: str, target: str) -> None:
    x = numbers(FORMATS[source].dtype, 5)
    format = FORMATS[target]
    widens = FORMATS[source].precision <= format.precision and FORMATS[source].most <= format.most
    if source == target:
        return
    body = f".reg .b{SIZES[target]} %y0; cvt.MODE{target}.{source} %y0, %x0;"
    for mode in [""] if widens else list(MODES):
        (seen,) = elementwise(body.replace("MODE", f"{mode}." if mode else ""), [x], [format.dtype])
        wanted = expected(format, fractions(x), MODES.get(mode, "n"))
        assert_same_but_for_zeros(seen, wanted)
    some = torch.tensor([math.inf, -math.inf, math.nan, -0.0]).to(x.dtype)
    (seen,) = elementwise(body.replace("MODE", "" if widens else "rn."), [some], [format.dtype])
    assert same_bits(seen, some.to(format.dtype))


@pytest.mark.parametrize("kind", FORMATS)
def test_rounding_to_integral_values(kind: str) -> None:
    x = numbers(FORMATS[kind].dtype, 6)
    for suffix in "nzmp":
        body = f".reg .b{SIZES[kind]} %y0; cvt.r{suffix}i.{kind}.{kind} %y0, %x0;"
        (seen,) = elementwise(body, [x], [x.dtype])
        assert [int(each) for each in seen.tolist()] == [integral(each, suffix) for each in fractions(x)]


@pytest.mark.parametrize("kind", FORMATS)
def test_conversion_to_integers(kind: str) -> None:
    """Rounded as asked, out of range to the nearest end, NaN to zero."""
    x = special(numbers(FORMATS[kind].dtype, 7))
    for bits, dtype in ((8, torch.int16), (16, torch.int16), (32, torch.int32), (64, torch.int64)):
        for sign in "us":
            low, high = (0, (1 << bits) - 1) if sign == "u" else (-(1 << bits - 1), (1 << bits - 1) - 1)
            for suffix in "nzmp":
                body = f".reg .b{max(16, bits)} %y0; cvt.r{suffix}i.{sign}{bits}.{kind} %y0, %x0;"
                (seen,) = elementwise(body, [x], [dtype])
                for value, result in zip(x.double().tolist(), seen.tolist(), strict=True):
                    if math.isnan(value):
                        wanted = 0
                    elif math.isinf(value):
                        wanted = low if value < 0 else high
                    else:
                        wanted = max(low, min(high, integral(Fraction(value), suffix)))
                    assert (result - wanted) % (1 << max(16, bits)) == 0, (value, sign, bits, suffix)


@pytest.mark.parametrize("kind", FORMATS)
def test_conversion_of_integers(kind: str) -> None:
    """64-bit integers have more bits than any format: they must not be rounded twice."""
    generator = torch.Generator().manual_seed(8)
    x = torch.randint(-(2**63), 2**63 - 1, (100,), generator=generator)
    x = torch.cat([x, x >> 20, x >> 40, x >> 55, torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 2**53 + 1, 2**24 + 1])])
    middle = torch.tensor([(2**24 + 1) * 2**20 + 1, (2**24 + 1) * 2**20 - 1, (2**24 + 1) * 2**20])
    x = torch.cat([x, middle, 2049 * 16 + torch.arange(-2, 3), (257 << 40) + torch.arange(-2, 3)])
    for bits, dtype in ((16, torch.int16), (32, torch.int32), (64, torch.int64)):
        source = x.to(dtype)
        for sign in "us":
            values = [Fraction(each % (1 << bits) if sign == "u" else each) for each in source.tolist()]
            for mode in MODES:
                body = f".reg .b{SIZES[kind]} %y0; cvt.{mode}.{kind}.{sign}{bits} %y0, %x0;"
                (seen,) = elementwise(body, [source], [FORMATS[kind].dtype])
                assert same_bits(seen, expected(FORMATS[kind], values, MODES[mode])), (kind, sign, bits, mode)


def test_conversion_between_integers() -> None:
    x = torch.tensor([0, 1, -1, 127, 128, -128, -129, 255, 256, 32767, -32768, 2**31 - 1, -(2**31)], dtype=torch.int32)
    for name, wanted in {
        "cvt.s64.s32": x.long(),
        "cvt.u64.u32": x.long() & 0xFFFFFFFF,
        "cvt.s64.s8": x.to(torch.int8).long(),
        "cvt.u64.u8": x.long() & 0xFF,
        "cvt.sat.s8.s32": x.clamp(-128, 127).long() & 0xFFFFFFFFFFFFFFFF,
        "cvt.sat.u8.s32": x.clamp(0, 255).long(),
        "cvt.sat.u16.u32": (x.long() & 0xFFFFFFFF).clamp(0, 65535),
    }.items():
        (seen,) = elementwise(f".reg .b64 %y0; {name} %y0, %x0;", [x], [torch.int64])
        assert seen.equal(wanted), name


def test_packed_conversion() -> None:
    """The first operand goes to the upper half."""
    a, b = special(numbers(torch.float32, 9)), special(numbers(torch.float32, 10))
    for kind, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        (seen,) = elementwise(f".reg .b32 %y0; cvt.rn.{kind}x2.f32 %y0, %x0, %x1;", [a, b], [torch.int32])
        assert same_bits(seen.view(dtype).view(-1, 2), torch.stack([b, a], 1).to(dtype))

"""Integer and bit instructions against Python's integers."""

from collections.abc import Callable

import pytest
import torch
from elementwise import elementwise
from torch import Tensor

pytestmark = pytest.mark.compiled

DTYPES = {16: torch.int16, 32: torch.int32, 64: torch.int64}
Oracle = Callable[..., int]


def values(bits: int, seed: int) -> list[int]:
    """Unsigned values: the ends, small numbers, shift distances around the width, and random ones."""
    generator = torch.Generator().manual_seed(seed)
    top = 1 << bits
    edges = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, top // 2 - 1, top // 2, top // 2 + 1, top - 1]
    words = torch.randint(0, 1 << 16, (40, 4), generator=generator).tolist()
    return [each % top for each in edges] + [sum(word << 16 * i for i, word in enumerate(row)) % top for row in words]


def pairs(*widths: int) -> list[list[int]]:
    """Operands of these widths: edges against edges shifted by some places, and random ones."""
    columns = [values(width, seed) for seed, width in enumerate(widths)]
    return [
        [column[(i * (3 * k + 1) + 7 * k * (i // 60)) % 60] for k, column in enumerate(columns)] for i in range(240)
    ]


def signed(x: int, bits: int) -> int:
    return x - (1 << bits) if x >> (bits - 1) & 1 else x


def tensor(column: list[int], bits: int) -> Tensor:
    return torch.tensor([signed(x, bits) for x in column], dtype=DTYPES[bits])


def check(instruction: str, widths: tuple[int, ...], result_bits: int, oracle: Oracle, rows: list[list[int]]) -> None:
    rows = [row[: len(widths)] for row in rows]
    inputs = [tensor([row[k] for row in rows], width) for k, width in enumerate(widths)]
    operands = ", ".join(f"%x{k}" for k in range(len(widths)))
    body = f".reg .b{result_bits} %y0; {instruction.replace('OPERANDS', operands)};"
    (result,) = elementwise(body, inputs, [DTYPES[result_bits]])
    expected = tensor([oracle(*row) % (1 << result_bits) for row in rows], result_bits)
    wrong = torch.nonzero(result != expected)
    assert not len(wrong), (instruction, rows[int(wrong[0])], result[wrong[0]], expected[wrong[0]])


def truncated(a: int, b: int) -> int:
    """Division towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def both_signs(bits: int) -> list[tuple[str, Callable[[int], int]]]:
    return [(f"u{bits}", lambda x: x), (f"s{bits}", lambda x: signed(x, bits))]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_arithmetic(bits: int) -> None:
    rows = pairs(bits, bits)
    for kind, read in both_signs(bits):
        two: dict[str, Oracle] = {
            f"add.{kind}": lambda a, b: a + b,
            f"sub.{kind}": lambda a, b: a - b,
            f"mul.lo.{kind}": lambda a, b: a * b,
            f"mul.hi.{kind}": lambda a, b, read=read: read(a) * read(b) >> bits,
            f"min.{kind}": lambda a, b, read=read: min(read(a), read(b)),
            f"max.{kind}": lambda a, b, read=read: max(read(a), read(b)),
        }
        for instruction, oracle in two.items():
            check(f"{instruction} %y0, OPERANDS", (bits, bits), bits, oracle, rows)
        divisible = [row for row in rows if row[1] and (read(row[0]), read(row[1])) != (-(1 << bits - 1), -1)]
        quotients: dict[str, Oracle] = {
            "div": lambda a, b, read=read: truncated(read(a), read(b)),
            "rem": lambda a, b, read=read: read(a) - read(b) * truncated(read(a), read(b)),
        }
        for name, oracle in quotients.items():
            check(f"{name}.{kind} %y0, OPERANDS", (bits, bits), bits, oracle, divisible)
        triples = pairs(bits, bits, bits)
        check(f"mad.lo.{kind} %y0, OPERANDS", (bits,) * 3, bits, lambda a, b, c: a * b + c, triples)
        check(
            f"mad.hi.{kind} %y0, OPERANDS",
            (bits,) * 3,
            bits,
            lambda a, b, c, read=read: (read(a) * read(b) >> bits) + c,
            triples,
        )
    for name, unary in {"abs": lambda a: abs(signed(a, bits)), "neg": lambda a: -a}.items():
        check(f"{name}.s{bits} %y0, OPERANDS", (bits,), bits, unary, rows)


@pytest.mark.parametrize("bits", [16, 32])
def test_wide_products(bits: int) -> None:
    for kind, read in both_signs(bits):
        check(
            f"mul.wide.{kind} %y0, OPERANDS",
            (bits, bits),
            2 * bits,
            lambda a, b, read=read: read(a) * read(b),
            pairs(bits, bits),
        )
        check(
            f"mad.wide.{kind} %y0, OPERANDS",
            (bits, bits, 2 * bits),
            2 * bits,
            lambda a, b, c, read=read: read(a) * read(b) + c,
            pairs(bits, bits, 2 * bits),
        )


def test_saturating_addition() -> None:
    def clamp(x: int) -> int:
        return max(-(1 << 31), min((1 << 31) - 1, x))

    rows = pairs(32, 32)
    check("add.sat.s32 %y0, OPERANDS", (32, 32), 32, lambda a, b: clamp(signed(a, 32) + signed(b, 32)), rows)
    check("sub.sat.s32 %y0, OPERANDS", (32, 32), 32, lambda a, b: clamp(signed(a, 32) - signed(b, 32)), rows)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_bitwise_and_shifts(bits: int) -> None:
    rows = pairs(bits, bits)
    for name, oracle in {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}.items():
        check(f"{name}.b{bits} %y0, OPERANDS", (bits, bits), bits, oracle, rows)
    check(f"not.b{bits} %y0, OPERANDS", (bits,), bits, lambda a: ~a, rows)
    check(f"cnot.b{bits} %y0, OPERANDS", (bits,), bits, lambda a: int(a == 0), rows)
    # Distances of the width or more give zero, or copies of the sign.
    shifts = pairs(bits, 32)
    check(f"shl.b{bits} %y0, OPERANDS", (bits, 32), bits, lambda a, k: a << k if k < bits else 0, shifts)
    for kind, read in both_signs(bits):
        check(
            f"shr.{kind} %y0, OPERANDS", (bits, 32), bits, lambda a, k, read=read: read(a) >> min(k, 2 * bits), shifts
        )


def field(a: int, start: int, length: int, bits: int, is_signed: bool) -> int:
    """The PTX ISA's pseudo-code of bfe."""
    start, length = start & 255, length & 255
    sign = 0 if not is_signed or length == 0 else a >> min(start + length - 1, bits - 1) & 1
    result = 0
    for i in range(bits):
        result |= (a >> (start + i) & 1 if i < length and start + i < bits else sign) << i
    return result


def inserted(a: int, b: int, start: int, length: int, bits: int) -> int:
    """The PTX ISA's pseudo-code of bfi."""
    start, length = start & 255, length & 255
    for i in range(length):
        if start + i < bits:
            b = b & ~(1 << start + i) | (a >> i & 1) << start + i
    return b


@pytest.mark.parametrize("bits", [32, 64])
def test_fields(bits: int) -> None:
    rows = [[a, s % 80, n % 80] for a, s, n in pairs(bits, 32, 32)] + pairs(bits, 32, 32)
    for kind in ("u", "s"):
        check(
            f"bfe.{kind}{bits} %y0, OPERANDS",
            (bits, 32, 32),
            bits,
            lambda a, s, n, kind=kind: field(a, s, n, bits, kind == "s"),
            rows,
        )
    rows = [[a, b, s % 80, n % 80] for a, b, s, n in pairs(bits, bits, 32, 32)]
    check(f"bfi.b{bits} %y0, OPERANDS", (bits, bits, 32, 32), bits, lambda *row: inserted(*row, bits), rows)


@pytest.mark.parametrize("bits", [32, 64])
def test_counting_bits(bits: int) -> None:
    rows = pairs(bits)
    check(f"popc.b{bits} %y0, OPERANDS", (bits,), 32, lambda a: bin(a).count("1"), rows)
    check(f"clz.b{bits} %y0, OPERANDS", (bits,), 32, lambda a: bits - a.bit_length(), rows)
    check(f"brev.b{bits} %y0, OPERANDS", (bits,), bits, lambda a: int(f"{a:0{bits}b}"[::-1], 2), rows)
    check(f"bfind.u{bits} %y0, OPERANDS", (bits,), 32, lambda a: a.bit_length() - 1, rows)
    # Where a number is negative, the highest zero is looked for.
    check(
        f"bfind.s{bits} %y0, OPERANDS",
        (bits,),
        32,
        lambda a: max(signed(a, bits), ~signed(a, bits)).bit_length() - 1,
        rows,
    )


def test_funnel_shift() -> None:
    rows = pairs(32, 32, 32)
    for wrap in (True, False):
        for left in (True, False):

            def oracle(low: int, high: int, k: int, wrap: bool = wrap, left: bool = left) -> int:
                k = k % 32 if wrap else min(k, 32)
                both = high << 32 | low
                return both << k >> 32 if left else both >> k

            name = f"shf.{'l' if left else 'r'}.{'wrap' if wrap else 'clamp'}.b32"
            check(f"{name} %y0, OPERANDS", (32, 32, 32), 32, oracle, rows)


@pytest.mark.parametrize("table", [0x00, 0x80, 0xE8, 0x96, 0x1B, 0xFF])
def test_logic_of_three(table: int) -> None:
    def oracle(a: int, b: int, c: int) -> int:
        return sum((table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i for i in range(32))

    check(f"lop3.b32 %y0, OPERANDS, {table:#x}", (32, 32, 32), 32, oracle, pairs(32, 32, 32))


def test_byte_permutation() -> None:
    def oracle(a: int, b: int, selector: int) -> int:
        parts = (a | b << 32).to_bytes(8, "little")
        chosen = [selector >> 4 * i & 15 for i in range(4)]
        return sum((0xFF * (parts[c & 7] >> 7) if c & 8 else parts[c & 7]) << 8 * i for i, c in enumerate(chosen))

    check("prmt.b32 %y0, OPERANDS", (32, 32, 32), 32, oracle, pairs(32, 32, 32))


def test_packing_and_predicates() -> None:
    (result,) = elementwise(
        ".reg .b64 %y0; .reg .b32 %lo, %hi; mov.b64 {%lo, %hi}, %x0; mov.b64 %y0, {%hi, %lo};",
        [torch.tensor([1, 2**40 + 5, -1])],
        [torch.int64],
    )
    assert result.tolist() == [1 << 32, 5 << 32 | 256, -1]
    (result,) = elementwise(
        ".reg .b32 %y0; setp.lt.s32 %p1|%p2, %x0, 10; setp.gt.and.s32 %p3, %x0, 2, !%p2; or.pred %p4, %p3, %p2;"
        "xor.pred %p5, %p3, %p2; not.pred %p6, %p1; selp.b32 %r10, 1, 0, %p1; selp.b32 %r11, 2, 0, %p3;"
        "selp.b32 %r12, 4, 0, %p4; selp.b32 %r13, 8, 0, %p5; selp.b32 %r14, 16, 0, %p6; add.s32 %y0, %r10, %r11;"
        "add.s32 %y0, %y0, %r12; add.s32 %y0, %y0, %r13; @%p6 add.s32 %y0, %y0, %r14; @!%p6 add.s32 %y0, %y0, 100;",
        [torch.tensor([-5, 2, 3, 9, 10, 11], dtype=torch.int32)],
        [torch.int32],
    )
    assert result.tolist() == [101, 101, 115, 115, 28, 28]

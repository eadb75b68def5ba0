"""Turns a parsed kernel into the records that the runtime executes: operands to rows, opcodes to handlers."""

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.virtual_gpu.ptx import TYPE_BYTES, Kernel, Statement
from bench.virtual_gpu.records import IN_CONSTANTS, LANES, NEGATED, NONE, ROW_ALIGNMENT, SPECIAL_REGISTERS

# Registers whose value is the same in every warp: one number per lane.
LANE_CONSTANTS: Mapping[str, Callable[[int], int]] = {
    "%laneid": lambda lane: lane,
    "%lanemask_eq": lambda lane: 1 << lane,
    "%lanemask_lt": lambda lane: (1 << lane) - 1,
    "%lanemask_le": lambda lane: (2 << lane) - 1,
    "%lanemask_gt": lambda lane: 0xFFFFFFFF & ~((2 << lane) - 1),
    "%lanemask_ge": lambda lane: 0xFFFFFFFF & ~((1 << lane) - 1),
}


@dataclass
class Encoded:
    """An instruction as the runtime takes it; see `Instruction` in `runtime/program.h`.

    `operands` is a vector's list of operands, `count` the elements of an access. `counted` asks for counters of its
    own.
    """

    handler: str
    target: int = 0
    first: int = 0
    second: int = 0
    third: int = 0
    extra: int = NONE
    operands: Sequence[int] = ()
    count: int = 0
    option: int = 0
    flags: int = 0
    immediate: int = 0
    counted: bool = False


class Modifiers:
    """The dotted parts of an opcode, taken one after another; what is left over is not modelled."""

    def __init__(self, statement: Statement) -> None:
        self.statement = statement
        self.left = list(statement.modifiers)

    def take(self, *names: str) -> str | None:
        """The first modifier that is one of `names`, taken off; None if there is none."""
        for modifier in self.left:
            if modifier in names:
                self.left.remove(modifier)
                return modifier
        return None

    def types(self) -> list[str]:
        """All types in their order, taken off."""
        found = [modifier for modifier in self.left if modifier in TYPE_BYTES]
        self.left = [modifier for modifier in self.left if modifier not in TYPE_BYTES]
        return found

    def done(self) -> None:
        """Raises NotImplementedError if something was not taken."""
        if self.left:
            raise not_modelled(self.statement, f"the modifier .{self.left[0]}")


def not_modelled(statement: Statement, what: str = "this instruction") -> NotImplementedError:
    """An error that names the instruction."""
    return NotImplementedError(f"{what} is not modelled: {statement}")


@dataclass
class Assembler:
    """Where a kernel's registers, constants and lists lie.

    Attributes:
        register_bytes: of a warp so far. constants: the bytes of the table. lists: operands of vectors.
        specials: the row of each special register in use.
    """

    kernel: Kernel
    register_bytes: int = LANES * 16  # the first row is where `_` and unused operands point
    constants: bytearray = field(default_factory=bytearray)
    lists: list[int] = field(default_factory=list)
    specials: dict[str, int] = field(default_factory=dict)
    _rows: dict[tuple[tuple[int, ...], str], int] = field(default_factory=dict)
    _constant_rows: dict[bytes, int] = field(default_factory=dict)

    def operand(self, text: str, type: str, statement: Statement) -> int:
        """The operand of a register of just the type's width, or of a constant of the type."""
        where, width = self.any_width(text, type, statement)
        if width != TYPE_BYTES[type]:
            raise not_modelled(statement, f"{text} of {width} bytes as .{type}")
        return where

    def any_width(self, text: str, type: str, statement: Statement) -> tuple[int, int]:
        """The operand, and the bytes of a lane of its row, which may be more than the type has."""
        if text == "_":
            return 0, TYPE_BYTES[type]
        negated = NEGATED if text.startswith("!") else 0
        text = text.removeprefix("!").strip()
        register = self.kernel.register(text, statement.scope)
        if register is not None:
            key = (register.scope, register.name)
            if key not in self._rows:
                self._rows[key] = self._new_row(LANES * register.bytes)
            return self._rows[key] | negated, register.bytes
        if text in SPECIAL_REGISTERS:
            if text not in self.specials:
                self.specials[text] = self._new_row(LANES * 4)
            return self.specials[text], 4
        if text in LANE_CONSTANTS:
            return self._constant([LANE_CONSTANTS[text](lane) for lane in range(LANES)], 4), 4
        if type == "pred":
            return self._constant([0xFFFFFFFF if self._number(text, "s32", statement) else 0], 4) | negated, 4
        width = TYPE_BYTES[type]
        bits = self._number(text, type, statement) & ((1 << 8 * width) - 1)
        return self._constant([bits] * LANES, width), width

    def symbol(self, name: str) -> int | None:
        """The offset of a parameter or a shared variable in its space."""
        if name in self.kernel.shared:
            return self.kernel.shared[name]
        return next((each.offset for each in self.kernel.parameters if each.name == name), None)

    def address(self, text: str, statement: Statement, symbol_type: str) -> tuple[int, int, int]:
        """(operand, bytes of an address, constant offset) of `[register + offset]` or `[symbol + offset]`."""
        match = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:([+-])\s*(-?\w+))?\s*\]", text)
        if match is None:
            raise not_modelled(statement, f"the address {text}")
        base, sign, number = match.groups()
        offset = int(number or "0", 0) * (-1 if sign == "-" else 1)
        where, width = self.any_width(base, symbol_type, statement)
        return where, width, offset

    def list_of(self, operands: Sequence[int]) -> int:
        """Where a vector's operands start in `lists`."""
        self.lists.extend(operands)
        return len(self.lists) - len(operands)

    def _new_row(self, size: int) -> int:
        start = self.register_bytes
        self.register_bytes += -(-size // ROW_ALIGNMENT) * ROW_ALIGNMENT
        return start

    def _constant(self, lanes: Sequence[int], width: int) -> int:
        row = b"".join(value.to_bytes(width, "little") for value in lanes)
        row += bytes(-len(row) % ROW_ALIGNMENT)
        if row not in self._constant_rows:
            self._constant_rows[row] = len(self.constants) | IN_CONSTANTS
            self.constants += row
        return self._constant_rows[row]

    def _number(self, text: str, type: str, statement: Statement) -> int:
        """A constant's bits."""
        known = self.symbol(text)
        if known is not None:
            return known
        if text == "WARP_SZ":
            return LANES
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
            return int(text[2:], 16)
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
            bits = int(text[2:], 16)
            if type != "f32":
                return bits
            value: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
            return int(struct.unpack("<I", struct.pack("<f", value))[0])
        match = re.fullmatch(r"(-?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[0-7]+|\d+)U?", text)
        if match is None:
            raise not_modelled(statement, f"the operand {text}")
        digits = match[2]
        size = int(digits, 8) if re.fullmatch(r"0[0-7]+", digits) else int(digits, 0)
        return -size if match[1] else size


Decoder = Callable[[Assembler, Statement], Encoded]


def vector(text: str) -> list[str]:
    """The elements of `{a, b}`, or a single operand as a list of one."""
    return [part.strip() for part in text.strip("{} ").split(",")] if text.startswith("{") else [text]

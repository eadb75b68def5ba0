"""Comparisons, selections and moves."""

from bench.virtual_gpu.assembler import Assembler, Decoder, Encoded, Modifiers, not_modelled, vector
from bench.virtual_gpu.instructions.arithmetic import FLOATS, bits_type
from bench.virtual_gpu.ptx import TYPE_BYTES, Statement
from bench.virtual_gpu.records import NONE

COMBINATIONS = {"and": 1, "or": 2, "xor": 3}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
COMPARISONS = (
    *("eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs"),
    *("equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"),
)


def _set(assembler: Assembler, statement: Statement) -> Encoded:
    """setp and set."""
    modifiers = Modifiers(statement)
    comparison = modifiers.take(*COMPARISONS) or ""
    combination = COMBINATIONS.get(modifiers.take(*COMBINATIONS) or "", 0)
    flush = "ftz." if modifiers.take("ftz") else ""
    *result, type = modifiers.types()
    modifiers.done()
    kind = type
    if type not in FLOATS and (type[0] == "b" or comparison in UNSIGNED):
        kind = f"u{type[1:]}"
    encoded = Encoded(
        f"{statement.base}.{UNSIGNED.get(comparison, comparison)}.{flush}{kind}",
        first=assembler.operand(statement.operands[1], type, statement),
        second=assembler.operand(statement.operands[2], type, statement),
        option=combination,
    )
    if combination:
        encoded.third = assembler.operand(statement.operands[3], "pred", statement)
    if statement.base == "set":
        encoded.target = assembler.operand(statement.operands[0], result[0], statement)
        encoded.immediate = 0x3F800000 if result[0] == "f32" else 0xFFFFFFFF
        return encoded
    target, _, opposite = statement.operands[0].partition("|")
    encoded.target = assembler.operand(target.strip(), "pred", statement)
    encoded.extra = assembler.operand(opposite.strip(), "pred", statement) if opposite else NONE
    return encoded


def _select(assembler: Assembler, statement: Statement) -> Encoded:
    modifiers = Modifiers(statement)
    types = modifiers.types()
    modifiers.done()
    target, first, second = (assembler.operand(text, types[0], statement) for text in statement.operands[:3])
    handler, kind = f"{statement.base}.{bits_type(types[0])}", "pred"
    if statement.base == "slct":
        kind = types[1]
        handler += f".{kind}"
    return Encoded(handler, target, first, second, assembler.operand(statement.operands[3], kind, statement))


def _move(assembler: Assembler, statement: Statement) -> Encoded:
    modifiers = Modifiers(statement)
    (type,) = modifiers.types()
    modifiers.done()
    target, source = statement.operands
    width, type = TYPE_BYTES[type], bits_type(type)
    packed = source if source.startswith("{") else target
    if not packed.startswith("{"):
        return Encoded(
            f"mov.{type}",
            assembler.operand(target, type, statement),
            assembler.operand(source, type, statement),
        )
    parts = vector(packed)
    part = f"b{8 * width // len(parts)}"
    operands = [assembler.operand(each, part, statement) for each in parts]
    action = "pack" if packed is source else "unpack"
    whole = assembler.operand(target if action == "pack" else source, type, statement)
    encoded = Encoded(f"{action}.{type}.{part}", operands=operands, count=len(parts))
    if action == "pack":
        encoded.target = whole
    else:
        encoded.first = whole
    return encoded


def _address(assembler: Assembler, statement: Statement) -> Encoded:
    """cvta: global addresses are generic ones."""
    if "global" not in statement.modifiers:
        raise not_modelled(statement, "a generic address outside global memory")
    type = statement.modifiers[-1]
    target, source = (assembler.operand(text, type, statement) for text in statement.operands)
    return Encoded(f"mov.{bits_type(type)}", target, source)


DECODERS: dict[str, Decoder] = {
    "setp": _set,
    "set": _set,
    "selp": _select,
    "slct": _select,
    "mov": _move,
    "cvta": _address,
}

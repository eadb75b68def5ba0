"""Integer, bit, floating-point and approximate arithmetic."""

from bench.virtual_gpu.assembler import Assembler, Decoder, Encoded, Modifiers, not_modelled
from bench.virtual_gpu.ptx import TYPE_BYTES, Statement

FLOATS = ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2", "f32x2")
DIRECTIONS = {"rn": 0, "rz": 1, "rm": 2, "rp": 3}
BITWISE = ("and", "or", "xor", "not", "cnot", "shl")
SIGN_MATTERS = ("div", "rem", "min", "max", "abs", "neg", "shr", "mul.hi", "mad.hi")


def bits_type(type: str) -> str:
    """The type of plain bits that is as wide."""
    return type if type == "pred" else f"b{8 * TYPE_BYTES[type]}"


def _plain(assembler: Assembler, statement: Statement) -> Encoded:
    """Operations whose operands all have the instruction's type."""
    modifiers = Modifiers(statement)
    types = modifiers.types()
    if len(types) != 1:
        raise not_modelled(statement)
    return (_floating if types[0] in FLOATS else _integer)(assembler, statement, modifiers, types[0])


def _integer(assembler: Assembler, statement: Statement, modifiers: Modifiers, type: str) -> Encoded:
    name = statement.base
    if name in ("mul", "mad"):
        name = f"{name}.{modifiers.take('lo', 'hi', 'wide')}"
    if modifiers.take("sat"):
        name += ".sat"
    modifiers.done()
    if name in BITWISE:
        type = bits_type(type)
    wide = name.endswith("wide")
    target_type = f"{type[0]}{2 * int(type[1:])}" if wide else type
    if name in BITWISE or (type[0] == "s" and (wide or name.endswith("sat") or name in SIGN_MATTERS)):
        kind = type
    else:
        kind = f"u{type[1:]}"
    types = [target_type, type, type, target_type]
    if name in ("shl", "shr"):
        types[2] = "u32"
    return _encoded(assembler, statement, f"{name}.{kind}", types)


def _floating(assembler: Assembler, statement: Statement, modifiers: Modifiers, type: str) -> Encoded:
    name = "fma" if statement.base == "mad" else statement.base
    direction = DIRECTIONS[modifiers.take(*DIRECTIONS) or "rn"]
    kind = modifiers.take("full", "approx", "NaN")
    flush = modifiers.take("ftz")
    modifiers.done()
    parts = [name, kind, "directed" if direction else None, "ftz" if flush else None, type]
    return _encoded(assembler, statement, ".".join(filter(None, parts)), [type] * 4, direction)


def _encoded(
    assembler: Assembler, statement: Statement, handler: str, types: list[str], option: int = 0, immediate: int = 0
) -> Encoded:
    """Operands in their order: target, first, second, third."""
    places = ("target", "first", "second", "third")
    encoded = Encoded(handler, option=option, immediate=immediate)
    for place, text, type in zip(places, statement.operands, types, strict=False):
        setattr(encoded, place, assembler.operand(text, type, statement))
    return encoded


def _bits(assembler: Assembler, statement: Statement) -> Encoded:
    """Counting and finding bits, whose result is a 32-bit number."""
    modifiers = Modifiers(statement)
    (type,) = modifiers.types()
    modifiers.done()
    return _encoded(assembler, statement, f"{statement.base}.{type}", ["u32", type])


def _reverse(assembler: Assembler, statement: Statement) -> Encoded:
    modifiers = Modifiers(statement)
    (type,) = modifiers.types()
    modifiers.done()
    return _encoded(assembler, statement, f"brev.{type}", [type, type])


def _field(assembler: Assembler, statement: Statement) -> Encoded:
    modifiers = Modifiers(statement)
    (type,) = modifiers.types()
    modifiers.done()
    if statement.base == "bfe":
        return _encoded(assembler, statement, f"bfe.{type}", [type, type, "u32", "u32"])
    encoded = _encoded(assembler, statement, f"bfi.{type}", [type, type, type, "u32"])
    encoded.extra = assembler.operand(statement.operands[4], "u32", statement)
    return encoded


def _funnel_shift(assembler: Assembler, statement: Statement) -> Encoded:
    return _encoded(assembler, statement, statement.opcode, ["b32"] * 4)


def _logic_of_three(assembler: Assembler, statement: Statement) -> Encoded:
    if statement.opcode != "lop3.b32":
        raise not_modelled(statement)
    table = int(statement.operands[4], 0)
    return _encoded(assembler, statement, "lop3.b32", ["b32"] * 4, immediate=table)


def _permute(assembler: Assembler, statement: Statement) -> Encoded:
    return _encoded(assembler, statement, statement.opcode, ["b32"] * 4)


DECODERS: dict[str, Decoder] = {
    **dict.fromkeys(("add", "sub", "mul", "mad", "fma", "div", "rem", "min", "max", "abs", "neg", "copysign"), _plain),
    **dict.fromkeys(("rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh"), _plain),
    **dict.fromkeys((*BITWISE, "shr"), _plain),
    **dict.fromkeys(("popc", "clz", "bfind"), _bits),
    **dict.fromkeys(("bfe", "bfi"), _field),
    "brev": _reverse,
    "shf": _funnel_shift,
    "lop3": _logic_of_three,
    "prmt": _permute,
}

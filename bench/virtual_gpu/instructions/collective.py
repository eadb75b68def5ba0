"""Exchanges between the lanes of a warp."""

from bench.virtual_gpu.assembler import Assembler, Decoder, Encoded, Modifiers, not_modelled
from bench.virtual_gpu.ptx import Statement
from bench.virtual_gpu.records import NONE


def _shuffle(assembler: Assembler, statement: Statement) -> Encoded:
    modifiers = Modifiers(statement)
    synchronises = modifiers.take("sync") is not None
    mode = modifiers.take("up", "down", "bfly", "idx")
    modifiers.take("b32")
    modifiers.done()
    target, found = _two_targets(assembler, statement, "b32")
    value, distance, limits, *members = (assembler.operand(text, "b32", statement) for text in statement.operands[1:])
    operands = members if synchronises else []
    return Encoded(f"shfl.{mode}", target, value, distance, limits, found, operands, len(operands))


def _two_targets(assembler: Assembler, statement: Statement, type: str) -> tuple[int, int]:
    """`d|p`: a value and a predicate, which may be missing."""
    target, _, found = statement.operands[0].partition("|")
    return (
        assembler.operand(target.strip(), type, statement),
        assembler.operand(found.strip(), "pred", statement) if found else NONE,
    )


def _vote(assembler: Assembler, statement: Statement) -> Encoded:
    modifiers = Modifiers(statement)
    synchronises = modifiers.take("sync") is not None
    mode = modifiers.take("all", "any", "uni", "ballot")
    modifiers.types()
    modifiers.done()
    target = assembler.operand(statement.operands[0], "b32" if mode == "ballot" else "pred", statement)
    source = assembler.operand(statement.operands[1], "pred", statement)
    members = assembler.operand(statement.operands[2], "b32", statement) if synchronises else NONE
    return Encoded(f"vote.{mode}", target, source, members)


def _match(assembler: Assembler, statement: Statement) -> Encoded:
    modifiers = Modifiers(statement)
    modifiers.take("sync")
    mode = modifiers.take("any", "all")
    (type,) = modifiers.types()
    modifiers.done()
    target, alike = _two_targets(assembler, statement, "b32")
    value = assembler.operand(statement.operands[1], type, statement)
    members = assembler.operand(statement.operands[2], "b32", statement)
    return Encoded(f"match.{mode}.{type}", target, value, members, extra=alike)


def _reduce(assembler: Assembler, statement: Statement) -> Encoded:
    modifiers = Modifiers(statement)
    modifiers.take("sync")
    operation = modifiers.take("add", "min", "max", "and", "or", "xor")
    propagates = ".NaN" if modifiers.take("NaN") else ""
    (type,) = modifiers.types()
    modifiers.done()
    target, value = (assembler.operand(text, type, statement) for text in statement.operands[:2])
    members = assembler.operand(statement.operands[2], "b32", statement)
    kind = "u32" if operation == "add" else type
    return Encoded(f"redux.{operation}{propagates}.{kind}", target, value, members)


def _active_mask(assembler: Assembler, statement: Statement) -> Encoded:
    return Encoded("activemask", assembler.operand(statement.operands[0], "b32", statement))


def _elect(assembler: Assembler, statement: Statement) -> Encoded:
    target, elected = _two_targets(assembler, statement, "b32")
    return Encoded("elect", target, assembler.operand(statement.operands[1], "b32", statement), extra=elected)


def _warp_barrier(assembler: Assembler, statement: Statement) -> Encoded:
    """bar.warp.sync; other barriers end a basic block and never come here."""
    if statement.opcode != "bar.warp.sync":
        raise not_modelled(statement)
    return Encoded("bar.warp", first=assembler.operand(statement.operands[0], "b32", statement))


DECODERS: dict[str, Decoder] = {
    "shfl": _shuffle,
    "vote": _vote,
    "match": _match,
    "redux": _reduce,
    "activemask": _active_mask,
    "elect": _elect,
    "bar": _warp_barrier,
}

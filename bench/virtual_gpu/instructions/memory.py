"""Loads, stores, atomics, and what only hints at or orders them."""

from bench.virtual_gpu.assembler import Assembler, Decoder, Encoded, Modifiers, not_modelled, vector
from bench.virtual_gpu.ptx import TYPE_BYTES, Statement
from bench.virtual_gpu.records import BYPASS_L1, GENERIC, NARROW_ADDRESS, NONE, PARAMETER, SHARED

SPACES = {
    "global": GENERIC,
    "shared": SHARED,
    "shared::cta": SHARED,
    "param": PARAMETER,
    "param::entry": PARAMETER,
}
# Lanes run in lock-step and warps in turns, so that every access is as ordered as the strongest of these asks.
ORDERS = ("weak", "relaxed", "acquire", "release", "acq_rel", "volatile", "mmio")
SCOPES = ("cta", "gpu", "sys", "cluster")
PAST_L1 = ("cg", "cv", "relaxed", "acquire", "volatile", "mmio")
CACHE_OPERATORS = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "unified")
ATOMIC_OPERATIONS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
VECTORS = {"v2": 2, "v4": 4, "v8": 8}


def _access(modifiers: Modifiers) -> tuple[int, int, int, str]:
    """(space, flags, elements, type); what is left of the modifiers is for the caller."""
    modifiers.left = [each for each in modifiers.left if not each.startswith(("L1::", "L2::", "level::"))]
    past_l1 = any(each in PAST_L1 for each in modifiers.left)
    space = SPACES[modifiers.take(*SPACES) or "global"]
    modifiers.left = [each for each in modifiers.left if each not in (*ORDERS, *SCOPES, *CACHE_OPERATORS)]
    count = VECTORS[vector_name] if (vector_name := modifiers.take(*VECTORS)) else 1
    types = modifiers.types()
    if len(types) != 1:
        raise not_modelled(modifiers.statement)
    return space, BYPASS_L1 if past_l1 else 0, count, types[0]


def _place(assembler: Assembler, text: str, encoded: Encoded, statement: Statement, space: int) -> Encoded:
    """Fills in where an access goes to."""
    # A global variable or a local one would be a symbol that the assembler does not know.
    encoded.first, width, encoded.immediate = assembler.address(text, statement, "u64")
    encoded.option = space
    if width == 4:
        if space == GENERIC:
            raise not_modelled(statement, "a 32-bit global address")
        encoded.flags |= NARROW_ADDRESS
    encoded.counted = space != PARAMETER
    return encoded


def _memory_type(type: str, sign_matters: bool) -> str:
    bits = 8 * TYPE_BYTES[type]
    if bits == 128:
        return "b128"
    return f"{'s' if sign_matters and type[0] == 's' and bits < 64 else 'u'}{bits}"


def _registers(assembler: Assembler, texts: list[str], type: str, statement: Statement) -> tuple[list[int], int]:
    """A vector's operands and the bytes of a lane of their rows, which may be more than the type has."""
    widths = {found.bytes for text in texts if (found := assembler.kernel.register(text, statement.scope))}
    if len(widths) > 1:
        raise not_modelled(statement, "a vector of unlike registers")
    width = widths.pop() if widths else TYPE_BYTES[type]
    # Constants get rows as wide as the registers beside them.
    return [assembler.operand(text, f"b{8 * width}", statement) for text in texts], width


def _load(assembler: Assembler, statement: Statement) -> Encoded:
    modifiers = Modifiers(statement)
    space, flags, count, type = _access(modifiers)
    modifiers.done()
    targets, width = _registers(assembler, vector(statement.operands[0]), type, statement)
    if len(targets) != count:
        raise not_modelled(statement)
    handler = f"load.{_memory_type(type, True)}.b{8 * width}"
    encoded = Encoded(handler, operands=targets, count=count, flags=flags)
    return _place(assembler, statement.operands[1], encoded, statement, space)


def _store(assembler: Assembler, statement: Statement) -> Encoded:
    modifiers = Modifiers(statement)
    space, _, count, type = _access(modifiers)
    modifiers.done()
    sources, width = _registers(assembler, vector(statement.operands[1]), type, statement)
    if len(sources) != count or space == PARAMETER:
        raise not_modelled(statement)
    encoded = Encoded(f"store.{_memory_type(type, False)}.b{8 * width}", operands=sources, count=count)
    return _place(assembler, statement.operands[0], encoded, statement, space)


def _atomic(assembler: Assembler, statement: Statement) -> Encoded:
    """atom, and red, which is atom without a result."""
    modifiers = Modifiers(statement)
    modifiers.take("noftz")
    operation = modifiers.take(*ATOMIC_OPERATIONS)
    space, _, count, type = _access(modifiers)
    modifiers.done()
    operands = list(statement.operands)
    result = vector(operands.pop(0)) if statement.base == "atom" else ["_"] * count
    targets = [NONE if text == "_" else assembler.operand(text, type, statement) for text in result]
    if operation == "cas":
        encoded = Encoded(f"atom.cas.{type}", operands=targets, count=1)
        encoded.second = assembler.operand(operands[1], type, statement)
        encoded.third = assembler.operand(operands[2], type, statement)
    else:
        sources = [assembler.operand(text, type, statement) for text in vector(operands[1])]
        encoded = Encoded(f"atom.{operation}.{type}", operands=[*sources, *targets], count=count)
        if len(sources) != count or len(targets) != count:
            raise not_modelled(statement)
    return _place(assembler, operands[0], encoded, statement, space)


def _matrix(assembler: Assembler, statement: Statement) -> Encoded:
    modifiers = Modifiers(statement)
    count = {"x1": 1, "x2": 2, "x4": 4}[modifiers.take("x1", "x2", "x4") or "x1"]
    transposed = ".trans" if modifiers.take("trans") else ""
    for expected in ("sync", "aligned", "m8n8", "b16"):
        modifiers.take(expected)
    if modifiers.take("shared", "shared::cta") is None:
        raise not_modelled(statement)
    modifiers.done()
    place, registers = statement.operands if statement.base == "stmatrix" else reversed(statement.operands)
    operands = [assembler.operand(text, "b32", statement) for text in vector(registers)]
    encoded = Encoded(f"{statement.base}{transposed}", operands=operands, count=count)
    return _place(assembler, place, encoded, statement, SHARED)


def _nothing(assembler: Assembler, statement: Statement) -> Encoded:
    """Fences and hints: memory is coherent here, and nothing is prefetched."""
    return Encoded("nothing")


def _policy(assembler: Assembler, statement: Statement) -> Encoded:
    """createpolicy: the caches have one policy; its register gets a zero that only hints read."""
    target = assembler.operand(statement.operands[0], "b64", statement)
    return Encoded("mov.b64", target, assembler.operand("0", "b64", statement))


DECODERS: dict[str, Decoder] = {
    "ld": _load,
    "ldu": _load,
    "st": _store,
    "atom": _atomic,
    "red": _atomic,
    "ldmatrix": _matrix,
    "stmatrix": _matrix,
    "createpolicy": _policy,
    **dict.fromkeys(
        (
            *("membar", "fence", "prefetch", "prefetchu", "applypriority", "discard"),
            *("nanosleep", "griddepcontrol", "setmaxnreg"),
        ),
        _nothing,
    ),
}

"""cvt: conversions between integers and floating-point formats."""

from bench.virtual_gpu.assembler import Assembler, Decoder, Encoded, Modifiers, not_modelled
from bench.virtual_gpu.instructions.arithmetic import DIRECTIONS, FLOATS
from bench.virtual_gpu.ptx import TYPE_BYTES, Statement

TO_INTEGRAL = {"rni": 0, "rzi": 1, "rmi": 2, "rpi": 3}


def _convert(assembler: Assembler, statement: Statement) -> Encoded:
    modifiers = Modifiers(statement)
    integral = modifiers.take(*TO_INTEGRAL)
    direction = modifiers.take(*DIRECTIONS)
    rounding = TO_INTEGRAL[integral] if integral else DIRECTIONS[direction or "rn"]
    flush, saturate = (modifiers.take(name) is not None for name in ("ftz", "sat"))
    relu = "relu." if modifiers.take("relu") else ""  # there are handlers for packed results only
    types = modifiers.types()
    modifiers.done()
    to, source = types if len(types) == 2 else types * 2
    target, target_width = assembler.any_width(statement.operands[0], to, statement)
    first, source_width = assembler.any_width(statement.operands[1], source, statement)
    if to in FLOATS:
        target_width = TYPE_BYTES[to]  # only integers are extended
        target = assembler.operand(statement.operands[0], to, statement)
    packed = to in ("f16x2", "bf16x2")
    if (flush and source != "f32") or (packed and saturate):
        raise not_modelled(statement)
    # How these lie in one number is what `Conversion` in runtime/convert.h reads.
    option = source_width | target_width << 5 | rounding << 10 | saturate << 12 | flush << 13
    if packed:
        second = assembler.operand(statement.operands[2], source, statement)
        return Encoded(f"cvt.{relu}{to}.{source}", target, first, second, option=option)
    if to == source == "f32" and integral and not saturate:
        return Encoded(f"cvt.{integral}.f32.f32", target, first, option=option)
    flags = int(integral is not None and to in FLOATS)
    return Encoded(f"cvt.{relu}{to}.{source}", target, first, option=option, flags=flags)


DECODERS: dict[str, Decoder] = {"cvt": _convert}

"""How PTX instructions are decoded, one file a family; `DECODERS` has them by the opcode's first part."""

from bench.virtual_gpu.instructions import arithmetic, collective, compare, convert, memory

DECODERS = {
    **arithmetic.DECODERS,
    **compare.DECODERS,
    **convert.DECODERS,
    **memory.DECODERS,
    **collective.DECODERS,
}

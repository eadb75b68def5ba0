"""The records that Python and C++ share, laid out as in `runtime/program.h`, `warp.h` and `counters.h`."""

import ctypes
from ctypes import c_int64, c_uint32, c_uint64, c_void_p

NONE = 0xFFFFFFFF
IN_CONSTANTS = 1
NEGATED = 2
ROW_ALIGNMENT = 64
LANES = 32
REGION_BITS = 40
REGION_START = 1 << (REGION_BITS - 1)
FAULTS_KEPT = 32

GENERIC, SHARED, PARAMETER = range(3)
NARROW_ADDRESS, BYPASS_L1 = 1, 2
FALL_THROUGH, BRANCH, EXIT, TRAP, BARRIER, ARRIVE, BARRIER_REDUCE = range(7)
BARRIER_OPERATIONS = {"popc": 0, "and": 1, "or": 2}
SPECIAL_REGISTERS = {
    name: number
    for number, name in enumerate(
        [f"%{group}.{axis}" for group in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"] + ["%warpid", "%smid"]
    )
}
FAULT_KINDS = (
    "global memory out of bounds",
    "shared memory out of bounds",
    "parameters out of bounds",
    "misaligned",
    "warp collective without all its lanes",
    "race in shared memory",
    "barrier deadlock",
    "instruction limit",
    "trap",
)


class Instruction(ctypes.Structure):
    """An instruction: the number of its handler, operands, and what else that handler needs."""

    _fields_ = [
        ("number", c_uint64),
        *[(name, c_uint32) for name in ("target", "first", "second", "third", "extra", "guard", "list", "count")],
        *[(name, c_uint32) for name in ("site", "option", "flags", "index")],
        ("immediate", c_int64),
    ]


class Block(ctypes.Structure):
    """A basic block and how it ends."""

    _fields_ = [
        (name, c_uint32)
        for name in (
            *("first", "count", "length", "ending", "guard", "target", "barrier", "threads"),
            *("predicate", "result", "operation", "index", "next_rank", "target_rank"),
        )
    ]


class SpecialRow(ctypes.Structure):
    """Where a special register lies among a warp's registers."""

    _fields_ = [("special", c_uint32), ("row", c_uint32)]


class Program(ctypes.Structure):
    """A decoded kernel."""

    _fields_ = [
        *[(name, c_void_p) for name in ("instructions", "blocks", "lists", "specials", "constants")],
        *[
            (name, c_uint32)
            for name in ("num_instructions", "num_blocks", "num_specials", "num_sites", "register_bytes")
        ],
    ]


class Options(ctypes.Structure):
    """A launch."""

    _fields_ = [
        ("grid", c_uint32 * 3),
        ("threads", c_uint32 * 3),
        *[
            (name, c_uint32)
            for name in ("num_sms", "ctas_per_sm", "quantum", "reversed", "approximation", "caches", "races")
        ],
        ("shared_bytes", c_uint32),
        ("parameter_bytes", c_uint32),
        ("unused", c_uint32),
        *[(name, c_uint64) for name in ("l1_bytes", "l2_bytes", "instruction_limit", "warp_limit")],
    ]


class Region(ctypes.Structure):
    """The memory of a storage."""

    _fields_ = [("host", c_uint64), ("begin", c_uint64), ("end", c_uint64), ("touched", c_void_p)]


class Fault(ctypes.Structure):
    """What went wrong, and where."""

    _fields_ = [
        ("kind", c_uint32),
        ("instruction", c_uint32),
        ("program_id", c_uint32 * 3),
        ("thread", c_uint32),
        ("address", c_uint64),
        ("bytes", c_uint32),
        ("unused", c_uint32),
    ]


SHARED_RECORDS = (Instruction, Block, Program, Options, Region, Fault)

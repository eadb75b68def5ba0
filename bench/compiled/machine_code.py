"""What compiled kernels ask of a GPU, read from their code: registers, spills, and how they access memory."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.virtual_gpu.ptx import TYPE_BYTES, Kernel, Statement, parse
from bench.virtual_gpu.toolkit import resources

REGISTER = re.compile(r"%\w+")
AMD_WIDTHS = {
    "ubyte": 1,
    "sbyte": 1,
    "byte": 1,
    "ushort": 2,
    "sshort": 2,
    "short": 2,
    "dword": 4,
    "dwordx2": 8,
    "dwordx3": 12,
    "dwordx4": 16,
    "b8": 1,
    "b16": 2,
    "b32": 4,
    "b64": 8,
    "b128": 16,
}


@dataclass(frozen=True)
class Access:
    """An instruction that accesses global memory.

    Attributes:
        kind: load, store or atomic. bytes: of a thread. opcode: as in the code.
        arguments: the kernel's, that the address is made from; empty where it is not known.
    """

    kind: str
    bytes: int
    opcode: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Demand:
    """What a compiled kernel needs.

    Attributes:
        registers: of a thread; vector registers on AMD. spilled: bytes of stack and local memory of a thread, and on
            AMD registers that were spilled. shared: bytes of a CTA.
    """

    registers: int
    spilled: int
    shared: int
    accesses: tuple[Access, ...]

    def widths(self, kind: str) -> list[int]:
        """The different widths in bytes of a kind of access, widest first."""
        return sorted({each.bytes for each in self.accesses if each.kind == kind}, reverse=True)

    @property
    def atomics(self) -> list[str]:
        """The different forms of atomic instructions."""
        return sorted({each.opcode for each in self.accesses if each.kind == "atomic"})


def of_nvidia(compiled: Any, pointers: Sequence[str | None]) -> Demand:
    """
    Args:
        compiled: by Triton for CUDA.
        pointers: of each of the kernel's parameters the name if it is a pointer, or None.
    """
    found = resources(compiled.asm["cubin"])
    accesses = accesses_of(parse(str(compiled.asm["ptx"]), str(compiled.metadata.name)), pointers)
    return Demand(found.registers, found.stack + found.local, int(compiled.metadata.shared), tuple(accesses))


def of_amd(compiled: Any) -> Demand:
    """From the metadata and instructions of Triton's code for HIP; arguments of accesses are not known."""
    code = str(compiled.asm["amdgcn"])

    def metadata(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", code)
        if found is None:
            raise ValueError(f"the code has no {name}")
        return int(found[1])

    spilled = sum(map(metadata, ("vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")))
    accesses = []
    for kind, width in re.findall(r"^\s+(?:global|buffer|flat)_(load|store|atomic)_(\w+)", code, re.MULTILINE):
        if kind == "atomic":
            accesses.append(Access(kind, 0, f"atomic_{width}"))
        else:
            name = re.sub(r"^d16_|_(d16|hi|lds).*$", "", width)
            accesses.append(Access(kind, AMD_WIDTHS[name], f"{kind}_{width}"))
    return Demand(metadata("vgpr_count"), spilled, int(compiled.metadata.shared), tuple(accesses))


def accesses_of(kernel: Kernel, pointers: Sequence[str | None]) -> list[Access]:
    """Accesses of global memory in PTX, with the arguments whose pointers their addresses are made from."""
    names = {
        parameter.name: name for parameter, name in zip(kernel.parameters, pointers, strict=False) if name is not None
    }
    statements = [statement for block in kernel.blocks for statement in block]
    origins: dict[str, frozenset[str]] = {}
    changed = True
    while changed:  # addresses go around loops
        changed = False
        for statement in statements:
            found = _origin(statement, origins, names)
            for register in REGISTER.findall(statement.operands[0]) if found else ():
                before = origins.get(register, frozenset())
                changed |= not found <= before
                origins[register] = before | found
    return [access for statement in statements if (access := _access(statement, origins)) is not None]


def _origin(statement: Statement, origins: dict[str, frozenset[str]], names: dict[str, str]) -> frozenset[str]:
    """The arguments that an instruction's result is an address in."""
    if not statement.operands or statement.base in ("setp", "st", "red"):
        return frozenset()
    if statement.base in ("ld", "atom"):
        inside = statement.operands[1].strip("[] ").split("+")[0].strip()
        if "param" not in statement.modifiers:
            return frozenset()
        return frozenset({names[inside]}) if inside in names else origins.get(inside, frozenset())
    if statement.base == "mov" and statement.operands[1] in names:  # where a parameter is, to choose one and load it
        return frozenset({names[statement.operands[1]]})
    sources = statement.operands[1:-1] if statement.base == "selp" else statement.operands[1:]
    registers = [register for operand in sources for register in REGISTER.findall(operand)]
    return frozenset().union(*(origins.get(register, frozenset()) for register in registers))


def _access(statement: Statement, origins: dict[str, frozenset[str]]) -> Access | None:
    modifiers = statement.modifiers
    if "global" not in modifiers:
        return None
    kind = {"ld": "load", "st": "store", "atom": "atomic", "red": "atomic", "cp": "load"}.get(statement.base)
    if kind is None:
        return None
    address = next(each for each in reversed(statement.operands) if each.startswith("["))
    arguments = frozenset().union(*(origins.get(each, frozenset()) for each in REGISTER.findall(address)))
    if statement.base == "cp":
        width = int(statement.operands[2])
    else:
        vector = next((int(each[1:]) for each in modifiers if re.fullmatch(r"v\d", each)), 1)
        width = vector * TYPE_BYTES[modifiers[-1]]
    return Access(kind, width, statement.opcode, tuple(sorted(arguments)))

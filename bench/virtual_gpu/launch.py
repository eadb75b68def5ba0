"""Runs a kernel on the virtual GPU."""

import ctypes
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from bench.virtual_gpu import records
from bench.virtual_gpu.counters import Counters, Fault, Site
from bench.virtual_gpu.device import H100, VirtualGpu
from bench.virtual_gpu.memory import Memory
from bench.virtual_gpu.program import Program

Rounding = Literal["nearest", "low", "high"]
_ROUNDINGS = {"nearest": 0, "low": 1, "high": 2}
# Programs that a grid may have along each axis, and threads of a CTA (CUDA programming guide, compute capabilities).
MOST_PROGRAMS = 2**31 - 1, 65535, 65535
MOST_THREADS = 1024
STOPPING = ("barrier deadlock", "instruction limit", "trap")


class VirtualGpuError(RuntimeError):
    """A kernel did what it must not do; the message says what and where."""


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        rounding: which end of their documented error approximate instructions (div.full, ex2.approx, ...) take.
        quantum: basic blocks that a warp runs before the next one gets its turn.
        reverse: CTAs, warps, and lanes that store to one address, in the opposite order.
        caches: whether to model them; without, the counters of L1 hits, L2 and DRAM stay zero.
        races: whether to look for races in shared memory.
        ctas_per_sm: that run at once; None for what fits.
        warp_limit, instruction_limit: warp instructions after which a warp, or the launch, is thought to run for ever.
    """

    rounding: Rounding = "nearest"
    quantum: int = 4
    reverse: bool = False
    caches: bool = True
    races: bool = True
    ctas_per_sm: int | None = None
    warp_limit: int = 20_000_000
    instruction_limit: int = 20_000_000_000


def interleavings(options: Options | None = None) -> Iterator[Options]:
    """Options that differ in the order of warps and CTAs: a result that differs between them depends on that order."""
    options = options or Options()
    yield options
    yield replace(options, reverse=True)
    yield replace(options, quantum=1)
    yield replace(options, quantum=1, reverse=True)
    yield replace(options, quantum=1_000_000)  # each warp to its next barrier
    yield replace(options, quantum=1_000_000, reverse=True)


@dataclass(frozen=True)
class Launch:
    """What a launch did.

    Attributes:
        sites: of each instruction that accesses memory, in the program's order.
        mix: how often warps executed each opcode.
        faults: the first of each kind; fault_counts: how many of each kind there were.
    """

    name: str
    grid: tuple[int, int, int]
    threads: tuple[int, int, int]
    counters: Counters
    sites: tuple[Site, ...]
    mix: Counter[str]
    faults: tuple[Fault, ...]
    fault_counts: dict[str, int]

    @property
    def approximate(self) -> bool:
        """Whether an approximate instruction ran, so that `Options.rounding` can matter."""
        return any(times and {"approx", "full"} & set(opcode.split(".")) for opcode, times in self.mix.items())

    @property
    def out_of_bounds(self) -> tuple[Fault, ...]:
        """The first accesses outside the arguments' tensors, shared memory or parameters."""
        return tuple(fault for fault in self.faults if fault.kind.endswith("out of bounds"))

    @property
    def misaligned(self) -> tuple[Fault, ...]:
        """The first accesses whose address is no multiple of their size."""
        return tuple(fault for fault in self.faults if fault.kind == "misaligned")

    def check(self) -> None:
        """Raises VirtualGpuError if there was any fault."""
        if self.faults:
            counts = ", ".join(f"{count} x {kind}" for kind, count in self.fault_counts.items())
            raise VirtualGpuError("\n".join([f"{self.name}: {counts}", *map(str, self.faults[:8])]))


def run(
    program: Program,
    grid: Sequence[int],
    threads: int | Sequence[int],
    arguments: Sequence[Any],
    *,
    shared_bytes: int = 0,
    registers: int = 0,
    device: VirtualGpu = H100,
    options: Options | None = None,
) -> Launch:
    """Runs a launch to its end; tensors are written in place.

    Args:
        program: made by `assemble`.
        grid, threads: CTAs, and threads of one, along up to three axes.
        arguments: of each parameter a CPU tensor, a number or None.
        shared_bytes: of dynamic shared memory of a CTA.
        registers: of a thread, as far as known, which limit how many CTAs run at once.

    Raises:
        VirtualGpuError: the kernel trapped, ran beyond a limit, or waits at a barrier for ever. Other faults are
            recorded in the result.
    """
    options = options or Options()
    grid_xyz, threads_xyz = _three(grid), _three([threads] if isinstance(threads, int) else threads)
    count = threads_xyz[0] * threads_xyz[1] * threads_xyz[2]
    if min(grid_xyz) < 1 or any(each > most for each, most in zip(grid_xyz, MOST_PROGRAMS, strict=True)):
        raise ValueError(f"grid is {grid_xyz}; it must be at least 1 and at most {MOST_PROGRAMS} along its axes")
    if not 1 <= count <= MOST_THREADS:
        raise ValueError(f"threads is {threads_xyz}; there must be 1 to {MOST_THREADS}")
    kernel, runtime = program.kernel, program.runtime
    memory = Memory(kernel.parameters, kernel.parameter_bytes, arguments)
    shared = kernel.shared_bytes + shared_bytes
    record = records.Options(
        grid_xyz,
        threads_xyz,
        num_sms=device.sms,
        ctas_per_sm=options.ctas_per_sm or device.resident_ctas(count, registers, shared),
        quantum=options.quantum,
        reversed=options.reverse,
        approximation=_ROUNDINGS[options.rounding],
        caches=options.caches,
        races=options.races,
        shared_bytes=shared,
        parameter_bytes=kernel.parameter_bytes,
        l1_bytes=device.l1_bytes,
        l2_bytes=device.l2_bytes,
        instruction_limit=options.instruction_limit,
        warp_limit=options.warp_limit,
    )
    num_blocks, num_sites = len(program.blocks), len(program.sites)
    counters = (ctypes.c_uint64 * len(runtime.launch_counters))()
    site_fields = len(runtime.site_counters)
    sites = (ctypes.c_uint64 * (site_fields * max(1, num_sites)))()
    executions, lanes = (ctypes.c_uint64 * num_blocks)(), (ctypes.c_uint64 * num_blocks)()
    faults = (records.Fault * (records.FAULTS_KEPT * len(records.FAULT_KINDS)))()
    fault_counts = (ctypes.c_uint64 * len(records.FAULT_KINDS))()
    parameters = (ctypes.c_uint8 * len(memory.parameters)).from_buffer(memory.parameters)
    num_faults = runtime.library.run(
        *(ctypes.byref(each) for each in (program.record, record)),
        memory.regions,
        ctypes.c_uint32(len(memory.regions)),
        parameters,
        *(counters, sites, executions, lanes, faults, fault_counts),
    )
    launch = Launch(
        kernel.name,
        grid_xyz,
        threads_xyz,
        Counters(**dict(zip(runtime.launch_counters, counters, strict=True))),
        tuple(
            Site(
                str(program.statements[index]),
                **dict(zip(runtime.site_counters, sites[site_fields * i : site_fields * (i + 1)], strict=True)),
            )
            for i, index in enumerate(program.sites)
        ),
        program.mix(list(executions)),
        tuple(_fault(fault, program, memory) for fault in faults[:num_faults]),
        {kind: number for kind, number in zip(records.FAULT_KINDS, fault_counts, strict=True) if number},
    )
    if any(kind in launch.fault_counts for kind in STOPPING):
        launch.check()
    return launch


def _three(extents: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*map(int, extents), 1, 1, 1)[:3]
    return x, y, z


def _fault(fault: records.Fault, program: Program, memory: Memory) -> Fault:
    kind = records.FAULT_KINDS[fault.kind]
    address, argument = fault.address, ""
    if kind in ("global memory out of bounds", "misaligned"):
        address, argument = memory.relative(fault.address)
    x, y, z = fault.program_id
    statement = str(program.statements[fault.instruction])
    return Fault(kind, statement, (x, y, z), fault.thread, address, argument, fault.bytes)

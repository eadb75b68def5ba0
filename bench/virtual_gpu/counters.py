"""What a launch on the virtual GPU counted, and what went wrong in it."""

from dataclasses import dataclass, fields

SECTOR_BYTES = 32


@dataclass(frozen=True)
class Counters:
    """Sums over a launch, or over several. A warp counts an instruction once, however many of its lanes are active.

    Requests are warp instructions that access memory. Sectors are 32 bytes, lines 128.

    Attributes:
        longest_warp: the most instructions that any one warp executed; of several launches, the largest.
        barriers: completed ones, summed over CTAs.
        load_sectors, store_sectors, atomic_sectors: touched by each request, summed; l1_hits of the loads'.
        l1_lines: lines touched by each request of global memory, summed: what the L1 cache has to look up.
        l2_read_sectors, l2_write_sectors: that go past L1; dram_*: that go past L2, dirty ones at the end included.
            Each launch starts with empty caches.
        unique_read_sectors, unique_written_sectors: different ones, by loads, and by stores and atomics.
        atomic_lanes: single atomic operations. atomic_conflicts: how often the busiest address of a request came again.
        shared_wavefronts: passes over the 32 banks; bank_conflicts: those that are there for conflicts only.
    """

    warp_instructions: int = 0
    lane_instructions: int = 0
    longest_warp: int = 0
    warps: int = 0
    ctas: int = 0
    barriers: int = 0
    load_requests: int = 0
    load_sectors: int = 0
    load_bytes: int = 0
    l1_hits: int = 0
    store_requests: int = 0
    store_sectors: int = 0
    store_bytes: int = 0
    atomic_requests: int = 0
    atomic_sectors: int = 0
    atomic_lanes: int = 0
    atomic_conflicts: int = 0
    l1_lines: int = 0
    l2_read_sectors: int = 0
    l2_read_hits: int = 0
    l2_write_sectors: int = 0
    dram_read_sectors: int = 0
    dram_write_sectors: int = 0
    unique_read_sectors: int = 0
    unique_written_sectors: int = 0
    shared_requests: int = 0
    shared_wavefronts: int = 0
    bank_conflicts: int = 0

    @property
    def l2_bytes(self) -> int:
        """Bytes between L1 and L2."""
        return SECTOR_BYTES * (self.l2_read_sectors + self.l2_write_sectors)

    @property
    def dram_bytes(self) -> int:
        """Bytes between L2 and DRAM."""
        return SECTOR_BYTES * (self.dram_read_sectors + self.dram_write_sectors)

    @property
    def least_bytes(self) -> int:
        """Bytes that an unlimited cache would read and write."""
        return SECTOR_BYTES * (self.unique_read_sectors + self.unique_written_sectors)

    def __add__(self, other: "Counters") -> "Counters":
        sums = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        sums["longest_warp"] = max(self.longest_warp, other.longest_warp)
        return Counters(**sums)


@dataclass(frozen=True)
class Site:
    """What one memory instruction of the program did; wavefronts and conflicts as in `Counters`."""

    instruction: str
    requests: int
    lanes: int
    bytes: int
    sectors: int
    lines: int
    l1_hits: int
    l2_hits: int
    wavefronts: int
    conflicts: int


@dataclass(frozen=True)
class Fault:
    """Something that a kernel must not do.

    Attributes:
        kind: one of `records.FAULT_KINDS`. instruction: its PTX.
        program_id: of the CTA. thread: number in the CTA.
        address: in bytes; of global memory relative to `argument`, the parameter that points nearest below.
        bytes: of the access.
    """

    kind: str
    instruction: str
    program_id: tuple[int, int, int]
    thread: int
    address: int
    argument: str
    bytes: int

    def __str__(self) -> str:
        where = f" at {self.argument}{self.address:+d}" if self.argument else f" at {self.address:#x}"
        return (
            f"{self.kind}: {self.instruction}{where if self.bytes else ''}, program {self.program_id}, "
            f"thread {self.thread}"
        )

"""A lower bound on a launch's time from its counters: a ratio between kernels, not a measurement.

Each resource is given its whole rate and nothing waits for anything: no latency, no tail, no uneven load.
"""

from dataclasses import dataclass, fields

from bench.virtual_gpu.counters import Counters
from bench.virtual_gpu.device import H100, VirtualGpu


@dataclass(frozen=True)
class Roofline:
    """Seconds that each resource needs at least.

    Attributes:
        issue: warp instructions, one a clock for each scheduler; PTX's count, not that of the machine code.
        l1: lines of global memory, one a clock for each SM. l2, dram: bytes at their rates.
        atomics: sectors, one a clock for each slice of L2. shared: wavefronts, one a clock for each SM.
    """

    issue: float
    l1: float
    l2: float
    dram: float
    atomics: float
    shared: float

    @property
    def limiter(self) -> str:
        """The resource that needs longest."""
        return max((field.name for field in fields(self)), key=lambda name: float(getattr(self, name)))

    @property
    def seconds(self) -> float:
        """The bound: what the limiter needs."""
        return float(getattr(self, self.limiter))


def roofline(counters: Counters, device: VirtualGpu = H100) -> Roofline:
    """The lower bound for a launch, or for several one after another whose counters were added."""
    clocks = device.sms * device.clock
    return Roofline(
        issue=counters.warp_instructions / (clocks * device.schedulers),
        l1=counters.l1_lines / clocks,
        l2=counters.l2_bytes / device.l2_rate,
        dram=counters.dram_bytes / device.dram_rate,
        atomics=counters.atomic_sectors / (device.l2_slices * device.clock),
        shared=counters.shared_wavefronts / clocks,
    )


def bytes_seconds(count: int, device: VirtualGpu = H100) -> float:
    """Seconds to move bytes from or to DRAM."""
    return count / device.dram_rate

"""The GPUs that are modelled: what decides traffic and which CTAs run together, and rates for lower bounds of time.

Rates are those of public data sheets; those of the caches are estimates from published micro-benchmarks.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class VirtualGpu:
    """A GPU.

    Attributes:
        architecture: compute capability times ten, which Triton compiles for.
        l1_bytes, l2_bytes: of the L1 cache of an SM and of the whole L2 cache.
        clock: in Hz. dram_rate, l2_rate: in bytes a second.
        l2_slices: each does one sector of atomics a clock.
        registers: 32-bit registers of an SM. shared_bytes: shared memory of an SM. max_ctas, max_threads: of an SM.
    """

    name: str = "H100"
    architecture: int = 90
    sms: int = 132
    schedulers: int = 4
    clock: float = 1.75e9
    dram_rate: float = 3350e9
    l2_rate: float = 5500e9
    l2_slices: int = 80
    l1_bytes: int = 192 << 10
    l2_bytes: int = 50 << 20
    registers: int = 65536
    shared_bytes: int = 228 << 10
    max_ctas: int = 32
    max_threads: int = 2048

    def resident_ctas(self, threads: int, registers: int = 0, shared_bytes: int = 0) -> int:
        """CTAs that fit on an SM together, at least one.

        Args:
            threads: of a CTA. registers: of a thread. shared_bytes: of a CTA.
        """
        warps = -(-threads // 32)
        limits = [self.max_ctas, self.max_threads // (32 * warps)]
        if registers:
            # Registers are given out in blocks of 256 to a warp.
            limits.append(self.registers // (warps * -(-registers * 32 // 256) * 256))
        if shared_bytes:
            limits.append(self.shared_bytes // (shared_bytes + 1024))  # 1 KiB of each CTA is the system's
        return max(1, min(limits))


H100 = VirtualGpu()
A100 = VirtualGpu(
    name="A100",
    architecture=80,
    sms=108,
    clock=1.41e9,
    dram_rate=1555e9,
    l2_rate=4500e9,
    l1_bytes=128 << 10,
    l2_bytes=40 << 20,
    shared_bytes=164 << 10,
)
T4 = VirtualGpu(
    name="T4",
    architecture=75,
    sms=40,
    clock=1.35e9,
    dram_rate=320e9,
    l2_rate=1300e9,
    l2_slices=32,
    l1_bytes=32 << 10,
    l2_bytes=4 << 20,
    shared_bytes=64 << 10,
    max_ctas=16,
    max_threads=1024,
)

"""What is counted, on cases small enough to count by hand."""

import pytest
import torch
import triton
import triton.language as tl
from elementwise import execute
from torch import Tensor

from bench.virtual_gpu import Counters, Launch, Options, VirtualGpu
from bench.virtual_gpu.triton_kernels import compile_triton

pytestmark = pytest.mark.compiled


@triton.jit
def copy_kernel(source, target, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + place, tl.load(source + place, mask=place < count), mask=place < count)


@triton.jit
def histogram_kernel(values, bins, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(bins + tl.load(values + place), 1, sem="relaxed")


def test_copy() -> None:
    """4096 floats by 8 CTAs of 128 threads, 16 bytes a thread: 512 bytes, 16 sectors, 4 lines a request."""
    source, target = torch.randn(4096), torch.zeros(4096)
    kernel = compile_triton(copy_kernel, (source, target, 4096), {"BLOCK": 512, "num_warps": 4})
    assert "ld.global.v4.b32" in kernel.ptx
    launch = kernel.run((8,))
    launch.check()
    assert target.equal(source)
    counters = launch.counters
    assert (counters.ctas, counters.warps) == (8, 32)
    assert counters.load_requests == counters.store_requests == 32
    assert counters.load_sectors == counters.store_sectors == 512
    assert counters.load_bytes == counters.store_bytes == 4 * 4096
    assert counters.l1_lines == 2 * 128
    assert counters.l1_hits == counters.l2_read_hits == 0
    assert counters.l2_bytes == counters.dram_bytes == counters.least_bytes == 2 * 4 * 4096
    assert counters.atomic_requests == counters.shared_requests == counters.barriers == 0
    assert counters.lane_instructions == 32 * counters.warp_instructions
    assert counters.longest_warp == counters.warp_instructions // 32
    assert sum(launch.mix.values()) == counters.warp_instructions
    assert launch.mix["ld.global.v4.b32"] == 32
    assert [(site.requests, site.lanes, site.sectors, site.lines) for site in launch.sites] == [
        (32, 1024, 512, 128)
    ] * 2


def addressed(stride: int, offset: int = 0, action: str = "st.global.b32 [%d0], %r0", lanes: int = 32) -> Launch:
    """Lane i accesses byte stride * i + offset."""
    memory = torch.zeros(32 * max(stride, 4) // 4 + 64)
    return execute(
        f"ld.param.u64 %d0, [test_param_0]; mov.u32 %r0, %tid.x; mad.wide.u32 %d0, %r0, {stride}, %d0;"
        f"add.s64 %d0, %d0, {offset}; setp.lt.u32 %p1, %r0, {lanes}; @%p1 {action};",
        [memory],
    )


@pytest.mark.parametrize(
    ("stride", "offset", "lanes", "sectors", "lines"),
    [
        (4, 0, 32, 4, 1),  # one line
        (4, 16, 32, 5, 2),  # the same, across the end of the line and of sectors
        (4, 128, 8, 1, 1),
        (8, 0, 32, 8, 2),
        (32, 0, 32, 32, 8),  # a sector for each lane
        (128, 0, 32, 32, 32),  # a line for each lane
        (0, 0, 32, 1, 1),  # all lanes the same word
        (4, 0, 0, 0, 0),  # no lane at all
    ],
)
def test_sectors_and_lines_of_a_request(stride: int, offset: int, lanes: int, sectors: int, lines: int) -> None:
    counters = addressed(stride, offset, lanes=lanes).counters
    assert counters.store_requests == (lanes > 0)
    assert (counters.store_sectors, counters.l1_lines) == (sectors, lines)
    assert counters.store_bytes == 4 * lanes
    assert counters.unique_written_sectors == sectors
    assert counters.dram_write_sectors == counters.l2_write_sectors == sectors
    assert counters.dram_read_sectors == 0


def test_atomic_histogram() -> None:
    """Each request of 32 lanes: 8 bins, each four times; all bins in one sector."""
    values = (torch.arange(1024) % 8).to(torch.int32)
    bins = torch.zeros(8, dtype=torch.int32)
    launch = compile_triton(histogram_kernel, (values, bins), {"BLOCK": 128, "num_warps": 4}).run((8,))
    launch.check()
    assert bins.tolist() == [128] * 8
    counters = launch.counters
    assert (counters.atomic_requests, counters.atomic_lanes) == (32, 1024)
    assert counters.atomic_sectors == 32
    assert counters.atomic_conflicts == 32 * 3
    assert counters.unique_written_sectors == 1
    # The sector is fetched once, and written back once at the end.
    assert counters.dram_write_sectors == 1
    assert counters.dram_read_sectors == 1 + 4 * 1024 // 32


@pytest.mark.parametrize(
    ("action", "shift", "wavefronts", "conflicts"),
    [
        ("st.shared.b32 [%r1], %r0", 2, 1, 0),  # consecutive words
        ("st.shared.b32 [%r1], %r0", 3, 2, 1),  # every second bank
        ("st.shared.b32 [%r1], %r0", 7, 32, 31),  # one bank
        ("ld.shared.b32 %r2, [tile]", 2, 1, 0),  # a broadcast
        ("st.shared.b64 [%r1], %d0", 3, 2, 0),  # 256 bytes take two passes
        ("st.shared.v4.b32 [%r1], {%r0, %r0, %r0, %r0}", 4, 4, 0),
        ("st.shared.v4.b32 [%r1], {%r0, %r0, %r0, %r0}", 7, 32, 28),
        ("ld.shared.u8 %h1, [%r1]", 0, 1, 0),  # four lanes a word
    ],
)
def test_bank_conflicts(action: str, shift: int, wavefronts: int, conflicts: int) -> None:
    launch = execute(
        f"mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, {shift}; mov.b32 %r2, tile; add.s32 %r1, %r1, %r2; {action};",
        declarations=".shared .align 16 .b8 tile[8192];",
    )
    launch.check()
    assert launch.counters.shared_requests == 1
    assert launch.counters.shared_wavefronts == wavefronts
    assert launch.counters.bank_conflicts == conflicts
    assert launch.sites[0].wavefronts == wavefronts


def twice(between: str = "", options: Options | None = None, load: str = "ld.global.b32") -> Counters:
    memory = torch.zeros(1024)
    return execute(
        f"ld.param.u64 %d0, [test_param_0]; mov.u32 %r0, %tid.x; mad.wide.u32 %d0, %r0, 4, %d0; {load} %r1, [%d0];"
        f"{between} {load} %r2, [%d0];",
        [memory],
        options=options,
    ).counters


def test_the_caches() -> None:
    again = twice()
    assert (again.load_sectors, again.l1_hits, again.l2_read_sectors, again.dram_read_sectors) == (8, 4, 4, 4)
    stored = twice("st.global.b32 [%d0], %r0;")  # goes through to L2, and out of L1
    assert (stored.l1_hits, stored.l2_read_sectors, stored.l2_read_hits, stored.dram_read_sectors) == (0, 8, 4, 4)
    for operator in ("ld.global.cg.b32", "ld.acquire.gpu.global.b32", "ld.volatile.global.b32"):
        passed = twice(load=operator)
        assert (passed.l1_hits, passed.l2_read_sectors, passed.l2_read_hits) == (0, 8, 4)
    without = twice(options=Options(caches=False))
    assert (without.load_sectors, without.l2_read_sectors, without.dram_bytes) == (8, 0, 0)


def sweep(kilobytes: int, device: VirtualGpu) -> Counters:
    """Two passes of one warp over an array, 128 bytes a load."""
    memory = torch.zeros(kilobytes * 256)
    return execute(
        "ld.param.u64 %d0, [test_param_0]; mov.u32 %r0, %tid.x; mov.b32 %r1, 0;"
        f"LOOP: and.b32 %r2, %r1, {kilobytes * 8 - 1}; shl.b32 %r2, %r2, 7; mad.lo.s32 %r2, %r0, 4, %r2;"
        "cvt.u64.u32 %d1, %r2; add.s64 %d1, %d0, %d1; ld.global.b32 %r3, [%d1]; add.s32 %r1, %r1, 1;"
        f"setp.lt.u32 %p1, %r1, {2 * kilobytes * 8}; @%p1 bra LOOP;",
        [memory],
        device=device,
    ).counters


def test_the_caches_capacity() -> None:
    """An array that fits is read once; one of twice the size is pushed out before the second pass, but for luck."""
    device = VirtualGpu(sms=1, l1_bytes=32 << 10, l2_bytes=128 << 10)
    fits = sweep(16, device)
    assert (fits.l1_hits, fits.dram_read_sectors) == (16 * 32, 16 * 32)
    beyond_l1 = sweep(128, device)
    assert beyond_l1.l1_hits < 0.1 * beyond_l1.load_sectors
    assert beyond_l1.least_bytes == 128 << 10
    beyond_l2 = sweep(512, device)
    assert beyond_l2.dram_read_sectors > 0.9 * beyond_l2.load_sectors


def test_divergence_costs_instructions_of_the_warp() -> None:
    """Both sides of a branch are run by the warp; lanes count their own side only."""

    def counted(limit: int) -> Counters:
        return execute(
            f"mov.u32 %r0, %tid.x; setp.lt.u32 %p1, %r0, {limit}; @%p1 bra A; add.s32 %r1, %r0, 1; add.s32 %r1, %r1, 1;"
            "bra B; A: add.s32 %r1, %r0, 2; B: mov.b32 %r2, %r1;"
        ).counters

    all_low, all_high, parted = counted(32), counted(0), counted(8)
    assert all_low.warp_instructions == 3 + 1 + 2
    assert all_high.warp_instructions == 3 + 3 + 2
    assert parted.warp_instructions == 3 + 3 + 1 + 2
    assert parted.lane_instructions == 32 * 5 + 8 * 1 + 24 * 3


def test_the_longest_warp() -> None:
    """Warp i of 4 loops i + 1 times; the sum of all and the longest are told apart."""
    launch = execute(
        "mov.u32 %r0, %tid.x; shr.u32 %r1, %r0, 5; mov.b32 %r2, 0;"
        "LOOP: add.s32 %r2, %r2, 1; setp.le.u32 %p1, %r2, %r1; @%p1 bra LOOP;",
        threads=128,
    )
    assert launch.counters.longest_warp == 3 + 4 * 3 + 1
    assert launch.counters.warp_instructions == 4 * (3 + 1) + 3 * (1 + 2 + 3 + 4)


def test_barriers_are_counted_once_a_cta() -> None:
    assert execute("bar.sync 0; bar.sync 0;", grid=(5,), threads=96).counters.barriers == 10


def test_counts_do_not_depend_on_where_the_cpu_puts_tensors() -> None:
    def counted(memory: Tensor) -> int:
        return execute(
            "ld.param.u64 %d0, [test_param_0]; mov.u32 %r0, %tid.x; mad.wide.u32 %d0, %r0, 4, %d0;"
            "ld.global.b32 %r1, [%d0];",
            [memory],
        ).counters.l1_lines

    kept = [torch.zeros(100) for _ in range(20)]
    assert {counted(memory) for memory in kept} == {1}
    assert counted(kept[0][8:]) == 2  # a view starts within the line

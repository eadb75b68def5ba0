"""Faults put into kernels on purpose are found."""

import re
from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from elementwise import execute

from bench.virtual_gpu import Launch, Options, VirtualGpuError, assemble, interleavings, poison, run, unwritten
from bench.virtual_gpu.triton_kernels import compile_triton

pytestmark = pytest.mark.compiled


@triton.jit
def scale_kernel(source, target, count, OFFSET: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if MASKED:
        tl.store(
            target + place, 2 * tl.load(source + place + OFFSET, mask=place < count, other=0.0), mask=place < count
        )
    else:
        tl.store(target + place, 2 * tl.load(source + place + OFFSET))


@triton.jit
def row_sum_kernel(source, target, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(target + tl.program_id(0), tl.sum(tl.load(source + tl.program_id(0) * BLOCK + place), 0))


@triton.jit
def endless_kernel(target, step):
    value = tl.load(target)
    while value < 100:
        value += step
    tl.store(target, value)


def test_a_sound_kernel_has_no_faults() -> None:
    source, target = torch.randn(1000), torch.full((1000,), torch.nan)
    launch = compile_triton(scale_kernel, (source, target, 1000), {"OFFSET": 0, "MASKED": True, "BLOCK": 256}).run((4,))
    launch.check()
    assert not launch.faults
    assert target.equal(2 * source)


def test_an_index_past_the_end() -> None:
    """One element too far, in the last program only; the tensor behind it in memory is no way out."""
    both = torch.randn(2000)
    source, target = both[:1000].clone(), torch.zeros(1000)
    launch = compile_triton(scale_kernel, (source, target, 1000), {"OFFSET": 1, "MASKED": True, "BLOCK": 256}).run((4,))
    assert launch.fault_counts == {"global memory out of bounds": 1}
    (fault,) = launch.out_of_bounds
    assert fault.instruction.split()[-4 if "{" in fault.instruction else 0]
    assert "ld.global" in fault.instruction
    assert fault.program_id == (3, 0, 0)
    assert (fault.address, fault.bytes) == (4000, 4)
    with pytest.raises(VirtualGpuError, match=r"scale_kernel: 1 x global memory out of bounds\n.*ld\.global"):
        launch.check()


def test_an_index_before_the_start() -> None:
    source, target = torch.randn(1000), torch.zeros(1000)
    launch = compile_triton(scale_kernel, (source, target, 1000), {"OFFSET": -1, "MASKED": True, "BLOCK": 256}).run(
        (4,)
    )
    (fault,) = launch.out_of_bounds
    assert (fault.address, fault.program_id, fault.thread) == (-4, (0, 0, 0), 0)


def test_a_missing_mask() -> None:
    """1000 elements in blocks of 256: 24 are read and 24 written past the end, where nothing is harmed."""
    source, target = torch.randn(1000), torch.zeros(1000)
    launch = compile_triton(scale_kernel, (source, target, 1000), {"OFFSET": 0, "MASKED": False, "BLOCK": 256}).run(
        (4,)
    )
    kinds = {fault.instruction.split(".")[0].split()[-1] for fault in launch.out_of_bounds}
    assert kinds == {"ld", "st"}
    accesses = sum(fault.bytes // 4 for fault in launch.out_of_bounds)
    assert accesses == 48
    assert target.equal(2 * source)


def test_a_view_is_limited_by_its_own_ends() -> None:
    """The rest of a storage is there on a GPU too, but is none of the kernel's business."""
    storage = torch.randn(1024)
    target = torch.zeros(1000)
    arguments = (storage[:1000], target, 1000)
    launch = compile_triton(scale_kernel, arguments, {"OFFSET": 8, "MASKED": True, "BLOCK": 256}).run((4,))
    assert sum(fault.bytes for fault in launch.out_of_bounds) == 8 * 4


def test_a_null_pointer() -> None:
    launch = execute("mov.b64 %d0, 0; ld.global.b32 %r0, [%d0+16];")
    assert launch.fault_counts == {"global memory out of bounds": 32}


def test_a_misaligned_access() -> None:
    memory = torch.zeros(64)
    start = "ld.param.u64 %d0, [test_param_0]; mov.u32 %r0, %tid.x; mad.wide.u32 %d0, %r0, 4, %d0;"
    assert not execute(f"{start} st.global.b32 [%d0], 0;", [memory]).faults
    launch = execute(f"{start} ld.global.v2.b32 {{%r1, %r2}}, [%d0];", [memory])
    assert launch.fault_counts == {"misaligned": 16}
    assert [(fault.thread, fault.address) for fault in launch.misaligned[:2]] == [(1, 4), (3, 12)]
    launch = execute("mov.u32 %r0, %tid.x; ld.shared.b32 %r1, [tile+2];", declarations=".shared .align 4 .b8 tile[64];")
    assert launch.fault_counts == {"misaligned": 32}


def test_a_pointer_that_is_less_aligned_than_compiled_for() -> None:
    """Triton reads 16 bytes at once where the pointer was a multiple of 16 at compile time."""
    source, target = torch.randn(1028), torch.zeros(1024)
    kernel = compile_triton(scale_kernel, (source[:1024], target, 1024), {"OFFSET": 0, "MASKED": True, "BLOCK": 1024})
    rest = [None] * (len(kernel.program.kernel.parameters) - 3)
    shared = int(kernel.compiled.metadata.shared)
    launch = run(kernel.program, (1,), kernel.threads, [source[1:1025], target, 1024, *rest], shared_bytes=shared)
    assert launch.misaligned
    # The same call compiled for what it gets reads element by element.
    again = compile_triton(scale_kernel, (source[1:1025], target, 1024), {"OFFSET": 0, "MASKED": True, "BLOCK": 1024})
    again.run((1,)).check()
    assert target.equal(2 * source[1:1025])


def test_shared_memory_out_of_bounds() -> None:
    body = (
        "mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 2; mov.b32 %r2, tile; add.s32 %r1, %r1, %r2; st.shared.b32 [%r1], %r0;"
    )
    launch = execute(body, declarations=".shared .align 4 .b8 tile[112];")
    assert launch.fault_counts == {"shared memory out of bounds": 4}
    fault = launch.out_of_bounds[0]
    assert (fault.thread, fault.address, fault.bytes) == (28, 112, 4)


def row_sums(edit: Callable[[str], str]) -> list[tuple[Launch, list[float]]]:
    """Sums of 8 rows of 512 under every interleaving, with the compiled PTX edited."""
    source = torch.randn((8, 512), generator=torch.Generator().manual_seed(0))
    results = []
    for options in interleavings():
        target = torch.zeros(8)
        kernel = compile_triton(row_sum_kernel, (source, target), {"BLOCK": 512, "num_warps": 4})
        launch = run(
            assemble(edit(kernel.ptx), "row_sum_kernel"),
            (8,),
            kernel.threads,
            [source, target, None, None],
            shared_bytes=int(kernel.compiled.metadata.shared),
            options=options,
        )
        results.append((launch, target.tolist()))
    return results


def without_barriers(ptx: str) -> str:
    edited, count = re.subn(r"bar\.sync\s+0;", "", ptx)
    assert count
    return edited


def test_a_removed_barrier_shows_in_the_results() -> None:
    sound = [result for _, result in row_sums(lambda ptx: ptx)]
    assert all(result == sound[0] for result in sound)
    torn = [result for _, result in row_sums(without_barriers)]
    assert any(str(result) != str(torn[0]) for result in torn)


def test_a_removed_barrier_is_a_race() -> None:
    """Found in every order of the warps, also in those that give the right result by luck."""
    assert not any(launch.faults for launch, _ in row_sums(lambda ptx: ptx))
    for launch, _ in row_sums(without_barriers):
        assert set(launch.fault_counts) == {"race in shared memory"}


@pytest.mark.parametrize(("value", "races"), [("7", 0), ("%r0", 3)])
def test_warps_that_store_to_one_place(value: str, races: int) -> None:
    """Three warps store after the first one; harmless where they agree."""
    body = f"mov.u32 %r0, %tid.x; shr.u32 %r0, %r0, 5; st.shared.u8 [cell], {value};"
    launch = execute(body, threads=128, declarations=".shared .align 4 .b8 cell[4];")
    assert sum(launch.fault_counts.values()) == races


def test_an_order_dependent_store() -> None:
    """Every program stores its number to one place: the last one wins."""
    seen = set()
    for options in interleavings():
        memory = torch.zeros(1, dtype=torch.int32)
        execute(
            "ld.param.u64 %d0, [test_param_0]; mov.u32 %r0, %ctaid.x; st.global.b32 [%d0], %r0;",
            [memory],
            grid=(8,),
            options=options,
        ).check()
        seen.add(int(memory))
    assert seen == {0, 7}


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool],
)
def test_an_unwritten_output(dtype: torch.dtype) -> None:
    """The last block is left out of the grid."""
    source = torch.randint(0, 2, (1000,)).to(dtype)
    target = torch.empty_like(source)
    poison(target)
    assert bool(unwritten(target).all())
    if dtype.is_floating_point:
        assert bool(target.isnan().all())
    else:
        assert not bool(unwritten(source).any())
    size = source.element_size()
    register = {1: "%h2", 2: "%h2", 4: "%r2", 8: "%d2"}[size]
    execute(
        "ld.param.u64 %d0, [test_param_0]; ld.param.u64 %d1, [test_param_1];"
        "mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x;"
        f"mad.lo.s32 %r0, %r1, 256, %r0; mad.wide.u32 %d0, %r0, {size}, %d0; mad.wide.u32 %d1, %r0, {size}, %d1;"
        f"ld.global.b{8 * size} {register}, [%d0];"
        f"st.global.b{8 * size} [%d1], {register};",
        [source, target],
        grid=(3,),
        threads=256,
    ).check()
    assert unwritten(target).tolist() == [False] * 768 + [True] * 232


def test_an_endless_loop() -> None:
    value = torch.zeros(1, dtype=torch.int32)
    kernel = compile_triton(endless_kernel, (value, 0))
    with pytest.raises(VirtualGpuError, match="instruction limit"):
        kernel.run((1,), options=Options(warp_limit=100_000))
    with pytest.raises(VirtualGpuError, match="instruction limit"):
        kernel.run((400,), options=Options(instruction_limit=1_000_000))
    compile_triton(endless_kernel, (value, 3)).run((1,), options=Options(warp_limit=100_000)).check()
    assert value.item() == 102


def test_wrong_arguments() -> None:
    program = assemble(".version 8.8\n.target sm_90\n.visible .entry one(.param .u64 one_param_0) { ret; }", "one")
    with pytest.raises(ValueError, match="2 arguments for 1 parameters"):
        run(program, (1,), 32, [None, None])
    with pytest.raises(ValueError, match="meta"):
        run(program, (1,), 32, [torch.zeros(1, device="meta")])
    with pytest.raises(ValueError, match="threads"):
        run(program, (1,), 2048, [None])
    with pytest.raises(ValueError, match="grid"):
        run(program, (1, 65536), 32, [None])
    with pytest.raises(KeyError, match="two"):
        assemble(".entry one() { ret; }", "two")

"""What loads, stores, parameters, shared memory, atomics and matrices do; test_virtual_counters has what they count."""

import pytest
import torch
from elementwise import execute
from torch import Tensor

from bench.virtual_gpu import Options

pytestmark = pytest.mark.compiled

OWN_ADDRESSES = "ld.param.u64 %d0, [test_param_0]; ld.param.u64 %d1, [test_param_1]; mov.u32 %r0, %tid.x;"


def bytes_of(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("qualifiers", "registers", "size"),
    [
        ("b8", "%h1", 1),
        ("nc.b16", "%h1", 2),
        ("L1::evict_last.b32", "%r1", 4),
        ("cg.b64", "%d2", 8),
        ("acquire.gpu.b32", "%r1", 4),
        ("volatile.u16", "%h1", 2),
        ("relaxed.sys.f32", "%r1", 4),
        ("v2.b8", "{%h1, %h2}", 2),
        ("v4.b8", "{%h1, %h2, %h3, %h4}", 4),
        ("v2.b16", "{%h1, %h2}", 4),
        ("v4.b32", "{%r1, %r2, %r3, %r4}", 16),
        ("nc.L1::no_allocate.L2::128B.v2.b64", "{%d2, %d3}", 16),
        ("b128", "%q0", 16),
        ("v8.b32", "{%r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8}", 32),
        ("v4.b64", "{%d2, %d3, %d4, %d5}", 32),
    ],
)
def test_copies_of_every_width(qualifiers: str, registers: str, size: int) -> None:
    source, target = bytes_of(32 * size), torch.zeros(32 * size, dtype=torch.uint8)
    stored = ".".join(part for part in qualifiers.split(".") if part[0] in "vbuf" and part != "volatile")
    execute(
        f"{OWN_ADDRESSES} mad.wide.u32 %d0, %r0, {size}, %d0; mad.wide.u32 %d1, %r0, {size}, %d1;"
        f"ld.global.{qualifiers} {registers}, [%d0]; st.global.{stored} [%d1 + 0], {registers};",
        [source, target],
    ).check()
    assert target.equal(source)


def test_narrow_loads_extend_by_their_sign() -> None:
    source = torch.tensor([-1, 127, -128, 5] * 8, dtype=torch.int8)
    out = torch.zeros((32, 4), dtype=torch.int64)
    execute(
        f"{OWN_ADDRESSES} cvt.u64.u32 %d2, %r0; add.s64 %d2, %d2, %d0; mad.wide.u32 %d1, %r0, 32, %d1;"
        "ld.global.s8 %d3, [%d2]; st.global.b64 [%d1], %d3; ld.global.u8 %d3, [%d2]; st.global.b64 [%d1+8], %d3;"
        "ld.global.s8 %r1, [%d2]; cvt.u64.u32 %d3, %r1; st.global.b64 [%d1+16], %d3;"
        "ld.global.s8 %h1, [%d2]; cvt.u64.u16 %d3, %h1; st.global.b64 [%d1+24], %d3;",
        [source, out],
    ).check()
    wide = source.long()
    assert out.equal(torch.stack([wide, wide & 0xFF, wide & 0xFFFFFFFF, wide & 0xFFFF], 1))


def test_predicated_load_keeps_the_default() -> None:
    """As Triton writes a masked load: a move of the default, then a guarded load, in a scope of its own."""
    source, target = torch.arange(32, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    execute(
        f"{OWN_ADDRESSES} mad.wide.u32 %d0, %r0, 4, %d0; mad.wide.u32 %d1, %r0, 4, %d1; setp.lt.u32 %p1, %r0, 20;"
        "{ .reg .pred %p1; setp.lt.u32 %p1, %r0, 10; selp.b32 %r5, 100, 0, %p1; }"
        "mov.u32 %r1, 0x7; @%p1 ld.global.b32 { %r1 }, [ %d0 + 0 ]; add.s32 %r1, %r1, %r5; st.global.b32 [%d1], {%r1};",
        [source, target],
    ).check()
    kept = [each if each < 20 else 7 for each in range(32)]
    assert target.tolist() == [each + 100 * (i < 10) for i, each in enumerate(kept)]


def test_parameters_by_selected_address() -> None:
    """LLVM turns tl.where over integer parameters into a selection of their addresses."""
    out = torch.zeros(32, dtype=torch.int64)
    execute(
        "ld.param.u64 %d0, [test_param_0]; mov.u32 %r0, %tid.x; mad.wide.u32 %d0, %r0, 8, %d0; and.b32 %r1, %r0, 1;"
        "setp.eq.s32 %p1, %r1, 0; mov.b64 %d1, test_param_1; mov.b64 %d2, test_param_2; selp.b64 %d3, %d1, %d2, %p1;"
        "ld.param.s32 %d4, [%d3]; st.global.b64 [%d0], %d4;",
        [out, 7, -9],
    ).check()
    assert out.tolist() == [7, -9] * 16


def test_shared_memory_exchanges_between_warps() -> None:
    """Static and dynamic shared memory, 32-bit and 64-bit addresses, a barrier, a 3-D block."""
    out = torch.zeros(96, dtype=torch.int32)
    execute(
        "ld.param.u64 %d0, [test_param_0]; mov.u32 %r0, %tid.x; mov.u32 %r1, %tid.y; mov.u32 %r2, %tid.z;"
        "mad.lo.s32 %r1, %r2, 3, %r1; mad.lo.s32 %r0, %r1, 8, %r0; mov.b32 %r3, dynamic; mad.lo.s32 %r4, %r0, 4, %r3;"
        "st.shared.b32 [%r4], %r0; mov.u64 %d1, fixed; mad.wide.u32 %d1, %r0, 4, %d1; st.shared::cta.u32 [%d1], 5;"
        "bar.sync 0; sub.s32 %r5, 95, %r0; mad.lo.s32 %r5, %r5, 4, %r3; ld.shared.u32 %r6, [%r5];"
        "ld.shared.b32 %r7, [%d1];"
        "add.s32 %r6, %r6, %r7; mad.wide.u32 %d0, %r0, 4, %d0; st.global.b32 [%d0], %r6;",
        [out],
        threads=(8, 3, 4),
        declarations=".shared .align 4 .b8 fixed[384]; .extern .shared .align 16 .b8 dynamic[];",
        shared_bytes=384,
    ).check()
    assert out.tolist() == [95 - i + 5 for i in range(96)]


ATOMICS = {
    # (operation and type, memory before, operand of lane i, expected after all lanes)
    "add.u32": (torch.tensor([5], dtype=torch.int32), "%r0", 5 + 496),
    "add.u64": (torch.tensor([5]), "%d2", 5 + 496),
    "min.s32": (torch.tensor([3], dtype=torch.int32), "%r9", -31),
    "max.u32": (torch.tensor([3], dtype=torch.int32), "%r0", 31),
    "and.b32": (torch.tensor([0xFF], dtype=torch.int32), "%r8", 0xF0),
    "or.b32": (torch.tensor([1], dtype=torch.int32), "%r0", 31),
    "xor.b32": (torch.tensor([1], dtype=torch.int32), "%r0", 1),
    "inc.u32": (torch.tensor([0], dtype=torch.int32), "%r8", 32),
    "dec.u32": (torch.tensor([40], dtype=torch.int32), "%r8", 8),
    "exch.b32": (torch.tensor([1], dtype=torch.int32), "%r0", 31),
    "add.f32": (torch.tensor([0.5]), "%r10", 496.5),
    "add.f64": (torch.tensor([0.5], dtype=torch.float64), "%d3", 496.5),
    "add.noftz.f16": (torch.tensor([0.5], dtype=torch.float16), "%h1", 496.5),
    "add.noftz.bf16": (torch.tensor([0.0], dtype=torch.bfloat16), "%h2", 32.0),
}


@pytest.mark.parametrize("name", ATOMICS)
@pytest.mark.parametrize("form", ["atom.global", "red.relaxed.gpu.global", "atom.shared"])
def test_atomics(name: str, form: str) -> None:
    before, operand, after = ATOMICS[name]
    memory, out = before.clone(), torch.zeros(32, dtype=before.dtype)
    size, shared = before.element_size(), "shared" in form
    register = {2: "%h5", 4: "%r20", 8: "%d5"}[size]
    value = f"b{8 * size}"
    place = "[cell]" if shared else "[%d0]"
    from_shared = f"ld.shared.{value} {register}, [cell]; st.global.{value} [%d0], {register};"
    result = "" if form.startswith("red") else f"{register}, "
    execute(
        f"{OWN_ADDRESSES} cvt.u64.u32 %d2, %r0; neg.s32 %r9, %r0; mov.b32 %r8, 0xF0; cvt.rn.f32.u32 %r10, %r0;"
        f"cvt.f64.f32 %d3, %r10; cvt.rn.f16.f32 %h1, %r10; mov.b16 %h2, 0x3F80; mov.b32 %r20, 0; mov.b64 %d5, 0;"
        f"mov.b16 %h5, 0; ld.global.{value} {register}, [%d0]; st.shared.{value} [cell], {register};"
        f"{form}.{name} {result}{place}, {operand};"
        f"mad.wide.u32 %d1, %r0, {size}, %d1; st.global.{value} [%d1], {register};"
        f"{from_shared if shared else ''}",
        [memory, out],
        declarations=".shared .align 8 .b8 cell[8];",
    ).check()
    assert memory.item() == after
    if not form.startswith("red") and name.startswith("add"):
        # Each lane has seen the sum of those before it.
        lanes = torch.arange(32) if "bf16" not in name else torch.ones(32)
        assert out.double().equal(before.double() + (lanes.cumsum(0) - lanes).double())


def test_reversed_order_of_lanes() -> None:
    for reverse, winner in ((False, 31), (True, 0)):
        memory, out = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        execute(f"{OWN_ADDRESSES} st.global.b32 [%d0], %r0;", [memory, out], options=Options(reverse=reverse)).check()
        assert memory.item() == winner


def test_vector_and_packed_atomics() -> None:
    memory, out = torch.zeros(8), torch.zeros(4, dtype=torch.float16)
    execute(
        f"{OWN_ADDRESSES} mov.b32 %r1, 0f3F800000; mov.b32 %r2, 0f40000000; mov.b32 %r3, 0x40003C00;"
        "atom.global.add.v4.f32 {%r4, %r5, %r6, %r7}, [%d0], {%r1, %r2, %r1, %r2};"
        "red.global.add.v2.f32 [%d0+16], {%r1, %r2}; red.global.add.noftz.f16x2 [%d1], %r3;"
        "atom.global.v2.f16x2.add.noftz {_, %r9}, [%d1], {%r3, %r3};",
        [memory, out],
    ).check()
    assert memory.tolist() == [32, 64, 32, 64, 32, 64, 0, 0]
    assert out.tolist() == [64, 128, 32, 64]


def test_compare_and_swap_builds_other_atomics() -> None:
    """A lock-free maximum: lanes diverge in the loop and leave it one after another."""
    memory, out = torch.tensor([3], dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    execute(
        f"{OWN_ADDRESSES} xor.b32 %r1, %r0, 21; ld.global.b32 %r2, [%d0];"
        "AGAIN: max.s32 %r3, %r2, %r1; atom.global.cas.b32 %r4, [%d0], %r2, %r3; setp.ne.s32 %p1, %r4, %r2;"
        "mov.b32 %r2, %r4; @%p1 bra AGAIN; mad.wide.u32 %d1, %r0, 4, %d1; st.global.b32 [%d1], 1;",
        [memory, out],
    ).check()
    assert memory.item() == 31
    assert out.sum() == 32


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices(transposed: bool) -> None:
    """ldmatrix and back by stmatrix; the fragment's layout is that of the PTX ISA's figure."""
    matrices = torch.arange(4 * 64, dtype=torch.int16).view(4, 8, 8)
    out, fragments = torch.zeros_like(matrices), torch.zeros((4, 32, 2), dtype=torch.int16)
    turn = ".trans" if transposed else ""
    execute(
        "ld.param.u64 %d0, [test_param_0]; ld.param.u64 %d1, [test_param_1]; ld.param.u64 %d2, [test_param_2];"
        "mov.u32 %r0, %laneid; mad.wide.u32 %d0, %r0, 16, %d0; mad.wide.u32 %d1, %r0, 16, %d1; shl.b32 %r1, %r0, 4;"
        "mad.wide.u32 %d2, %r0, 4, %d2;"
        "mov.b32 %r2, tile; add.s32 %r1, %r1, %r2; ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%d0];"
        "st.shared.v4.b32 [%r1], {%r4, %r5, %r6, %r7}; bar.warp.sync -1;"
        f"ldmatrix.sync.aligned.m8n8.x4{turn}.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r1];"
        "st.global.b32 [%d2], %r10; st.global.b32 [%d2+128], %r11; st.global.b32 [%d2+256], %r12;"
        "st.global.b32 [%d2+384], %r13; bar.warp.sync -1; st.shared.v4.b32 [%r1], {0, 0, 0, 0}; bar.warp.sync -1;"
        f"stmatrix.sync.aligned.m8n8.x4{turn}.shared.b16 [%r1], {{%r10, %r11, %r12, %r13}}; bar.warp.sync -1;"
        "ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r1]; st.global.v4.b32 [%d1], {%r4, %r5, %r6, %r7};",
        [matrices, out, fragments],
        declarations=".shared .align 16 .b8 tile[512];",
    ).check()
    assert out.equal(matrices)
    seen = matrices.transpose(1, 2) if transposed else matrices
    assert fragments.view(4, 8, 8).equal(seen)


def test_cache_policies_are_taken_as_hints() -> None:
    source, target = torch.arange(32, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    execute(
        f"{OWN_ADDRESSES} mad.wide.u32 %d0, %r0, 4, %d0; mad.wide.u32 %d1, %r0, 4, %d1;"
        "createpolicy.fractional.L2::evict_first.b64 %d4, 1.0; prefetch.global.L2 [%d0]; membar.gl; fence.acq_rel.gpu;"
        "ld.global.L1::evict_first.L2::cache_hint.b32 {%r1}, [%d0], %d4;"
        "st.global.L1::no_allocate.L2::cache_hint.b32 [%d1], {%r1}, %d4;",
        [source, target],
    ).check()
    assert target.equal(source)

"""Shuffles, votes, reductions and barriers; lanes that part and meet again."""

import pytest
import torch
from elementwise import execute

from bench.virtual_gpu import VirtualGpuError

pytestmark = pytest.mark.compiled

STORE = "ld.param.u64 %d9, [test_param_0]; mov.u32 %r30, %tid.x; mad.wide.u32 %d9, %r30, 4, %d9; st.global.b32 [%d9], "


def by_lane(body: str, result: str, threads: int = 32) -> list[int]:
    out = torch.zeros(threads, dtype=torch.int32)
    execute(f"mov.u32 %r0, %tid.x; {body} {STORE} {result};", [out], threads=threads).check()
    values: list[int] = out.tolist()
    return values


def shuffled(mode: str, lane: int, by: int, limits: int) -> tuple[int, bool]:
    """The PTX ISA's pseudo-code of shfl."""
    clamp, segment = limits & 31, limits >> 8 & 31
    most, least = (lane & segment) | (clamp & ~segment), lane & segment
    source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": least | (by & ~segment)}[mode]
    inside = source >= most if mode == "up" else source <= most
    return (source if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8, 4, 2])
def test_shuffles_of_all_widths(mode: str, width: int) -> None:
    limits = (32 - width) << 8 | (0 if mode == "up" else 31)
    for by in (0, 1, 3, 5, 16, 31):
        seen = by_lane(
            f"mul.lo.s32 %r1, %r0, 100; shfl.sync.{mode}.b32 %r2|%p1, %r1, {by}, {limits}, -1;"
            "selp.b32 %r3, 1, 0, %p1; add.s32 %r2, %r2, %r3;",
            "%r2",
        )
        wanted = [shuffled(mode, lane, by, limits) for lane in range(32)]
        assert seen == [100 * source + inside for source, inside in wanted]


def test_votes() -> None:
    ballot = by_lane("setp.gt.u32 %p1, %r0, 27; vote.sync.ballot.b32 %r1, %p1, -1;", "%r1")
    assert ballot == [-(1 << 28)] * 32
    for mode, one, none, every in (("any", 1, 0, 1), ("all", 0, 0, 1), ("uni", 0, 1, 1)):
        for limit, wanted in ((5, one), (0, none), (32, every)):
            body = f"setp.lt.u32 %p1, %r0, {limit}; vote.sync.{mode}.pred %p2, %p1, -1; selp.b32 %r1, 1, 0, %p2;"
            assert by_lane(body, "%r1") == [wanted] * 32
    assert by_lane("setp.lt.u32 %p1, %r0, 2; vote.sync.ballot.b32 %r1, !%p1, -1;", "%r1") == [-4] * 32
    assert by_lane("activemask.b32 %r1;", "%r1") == [-1] * 32


def test_matching_and_electing() -> None:
    groups = by_lane("and.b32 %r1, %r0, 3; match.any.sync.b32 %r2, %r1, -1;", "%r2")
    assert groups == [
        sum(1 << other for other in range(32) if other % 4 == lane % 4) - (1 << 32) * (lane % 4 == 3)
        for lane in range(32)
    ]
    assert by_lane("mov.b32 %r1, 9; match.all.sync.b32 %r2|%p1, %r1, -1;", "%r2") == [-1] * 32
    assert by_lane("match.all.sync.b32 %r2|%p1, %r0, -1; selp.b32 %r2, 1, %r2, %p1;", "%r2") == [0] * 32
    assert by_lane("elect.sync %r1|%p1, -1; selp.b32 %r2, 7, 0, %p1;", "%r2") == [7] + [0] * 31


def test_reductions_of_a_warp() -> None:
    values = [(lane * 37 % 32) - 16 for lane in range(32)]
    start = "mul.lo.s32 %r1, %r0, 37; and.b32 %r1, %r1, 31; sub.s32 %r1, %r1, 16;"
    for name, wanted in {
        "add.s32": sum(values),
        "min.s32": min(values),
        "max.s32": max(values),
        "min.u32": 0,
        "max.u32": -1,
        "and.b32": 0,
        "or.b32": -1,
        "xor.b32": 0,
    }.items():
        assert by_lane(f"{start} redux.sync.{name} %r2, %r1, -1;", "%r2") == [wanted] * 32, name


def test_collectives_of_some_lanes() -> None:
    """Lanes that a branch has taken elsewhere take no part."""
    body = (
        "mov.b32 %r2, 0; setp.lt.u32 %p1, %r0, 8; @%p1 bra LOW; vote.sync.ballot.b32 %r2, %p1, 0xFFFFFF00;"
        "bra MEET; LOW: redux.sync.add.s32 %r2, %r0, 0xFF; MEET: shfl.sync.idx.b32 %r3, %r2, 0, 31, -1;"
    )
    assert by_lane(body, "%r3") == [28] * 32
    assert by_lane(body, "%r2") == [28] * 8 + [0] * 24


def test_lanes_meet_again_after_a_loop() -> None:
    """Each lane loops as often as its number; the sum is taken by all together."""
    body = (
        "mov.b32 %r1, 0; setp.eq.u32 %p1, %r0, 0; @%p1 bra DONE; LOOP: add.s32 %r1, %r1, 1; setp.lt.u32 %p2, %r1, %r0;"
        "@%p2 bra LOOP; DONE: redux.sync.add.s32 %r2, %r1, -1;"
    )
    assert by_lane(body, "%r2") == [496] * 32


def test_a_collective_without_a_member_is_a_fault() -> None:
    out = torch.zeros(32, dtype=torch.int32)
    body = "setp.lt.u32 %p1, %r0, 8; @%p1 bra LOW; bra END; LOW: redux.sync.add.s32 %r1, %r0, -1; END:"
    launch = execute(f"mov.u32 %r0, %tid.x; {body} {STORE} %r0;", [out])
    assert [fault.kind for fault in launch.faults] == ["warp collective without all its lanes"]
    assert "redux.sync.add.s32" in launch.faults[0].instruction


def test_special_registers() -> None:
    out = torch.zeros((2, 3, 2, 4, 12), dtype=torch.int32)
    names = [f"%{group}.{axis}" for group in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
    reads = "".join(f"mov.u32 %r{10 + i}, {name};" for i, name in enumerate(names))
    stores = "".join(f"st.global.b32 [%d0+{4 * i}], %r{10 + i};" for i in range(12))
    execute(
        f"ld.param.u64 %d0, [test_param_0]; {reads} mad.lo.s32 %r1, %r18, 3, %r17; mad.lo.s32 %r1, %r1, 2, %r11;"
        f"mad.lo.s32 %r1, %r1, 4, %r10; mad.wide.u32 %d0, %r1, 48, %d0; {stores}",
        [out],
        grid=(1, 3, 2),
        threads=(4, 2),
    ).check()
    for z in range(2):
        for y in range(3):
            for row in range(2):
                for column in range(4):
                    assert out[z, y, row, column].tolist() == [column, row, 0, 4, 2, 1, 0, y, z, 1, 3, 2]


def test_lane_constants() -> None:
    assert by_lane("mov.u32 %r1, %laneid;", "%r1", 64) == [*range(32), *range(32)]
    assert by_lane("mov.u32 %r1, %warpid;", "%r1", 64) == [0] * 32 + [1] * 32
    assert by_lane("mov.u32 %r1, %lanemask_lt; popc.b32 %r1, %r1;", "%r1") == list(range(32))
    assert by_lane("mov.u32 %r1, %lanemask_ge; popc.b32 %r1, %r1;", "%r1") == list(range(32, 0, -1))


def test_barrier_with_reduction() -> None:
    for name, wanted in (("popc.u32", 40), ("and.pred", 0), ("or.pred", 1)):
        target = "%r1" if "popc" in name else "%p2"
        after = "" if "popc" in name else "selp.b32 %r1, 1, 0, %p2;"
        body = f"setp.lt.u32 %p1, %r0, 40; barrier.cta.red.{name} {target}, 1, %p1; {after}"
        assert by_lane(body, "%r1", 96) == [wanted] * 96


PRODUCER_AND_CONSUMER = """
    setp.ge.u32 %p1, %r0, 32; @%p1 bra CONSUMER;
    mul.lo.s32 %r1, %r0, 3; mov.b32 %r2, tile; mad.lo.s32 %r2, %r0, 4, %r2; st.shared.b32 [%r2], %r1;
    bar.arrive 2, 64; bra END;
    CONSUMER: bar.sync 2, 64; sub.s32 %r3, 63, %r0; mov.b32 %r2, tile; mad.lo.s32 %r2, %r3, 4, %r2;
    ld.shared.b32 %r1, [%r2];
    END:
"""


def test_barrier_of_a_part() -> None:
    """One warp arrives and goes on, another waits for it; a third takes no part."""
    out = torch.zeros(64, dtype=torch.int32)
    execute(
        f"mov.u32 %r0, %tid.x; {PRODUCER_AND_CONSUMER} {STORE} %r1;",
        [out],
        threads=64,
        declarations=".shared .align 4 .b8 tile[128];",
    ).check()
    assert out.tolist() == [3 * i for i in range(32)] + [3 * (31 - i) for i in range(32)]


def test_a_barrier_does_not_wait_for_threads_that_have_ended() -> None:
    assert by_lane(f"setp.ge.u32 %p1, %r0, 64; {STORE} 3; @%p1 ret; bar.sync 0; mov.b32 %r1, 5;", "%r1", 96) == [
        *[5] * 64,
        *[3] * 32,
    ]


def test_waiting_for_ever_is_an_error() -> None:
    out = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(VirtualGpuError, match=r"barrier deadlock.*\n.*bar.sync 0"):
        execute(
            "mov.u32 %r0, %tid.x; setp.ge.u32 %p1, %r0, 32; @%p1 bra OTHER;"
            "bar.sync 0; bra END; OTHER: bar.sync 1; END:",
            [out],
            threads=64,
        )


def test_a_trap_is_an_error() -> None:
    with pytest.raises(VirtualGpuError, match="trap"):
        execute("mov.u32 %r0, %tid.x; setp.eq.u32 %p1, %r0, 9; @%p1 trap;", [torch.zeros(1)])


@pytest.mark.parametrize(
    "instruction",
    [
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r1, %r2, %r3, %r4}, {%r1}, {%r1}, {%r1};",
        "cp.async.ca.shared.global [%r1], [%d1], 16;",
        "cp.async.bulk.tensor.2d.shared.global [%r1], [%d1, {%r1, %r2}], [%r3];",
        "ld.local.b32 %r1, [%d1];",
        "call.uni helper;",
        "add.cc.u32 %r1, %r2, %r3;",
        "fma.rn.relu.f16 %h1, %h2, %h3, %h4;",
        "barrier.cluster.arrive.aligned;",
        "mov.u64 %d1, %globaltimer;",
    ],
)
def test_what_is_not_modelled_is_named(instruction: str) -> None:
    with pytest.raises(NotImplementedError) as caught:
        execute(instruction, [torch.zeros(1)])
    assert instruction.split()[0].strip(";") in str(caught.value)


def test_lanes_meet_in_a_loop_whose_text_begins_with_its_end() -> None:
    """One side of the branch is behind the place where both meet, as LLVM lays out a loop that it has turned around."""
    seen = by_lane(
        "mov.b32 %r1, 0; mov.b32 %r2, 0; bra HEAD;"
        "EVEN: add.s32 %r1, %r1, 1;"
        "MEET: shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1; add.s32 %r1, %r1, %r3; add.s32 %r2, %r2, 1;"
        "setp.ge.u32 %p1, %r2, 3; @%p1 bra END;"
        "HEAD: and.b32 %r4, %r0, 1; setp.ne.u32 %p2, %r4, 0; @%p2 bra ODD; bra EVEN;"
        "ODD: add.s32 %r1, %r1, 10; bra MEET;"
        "END:",
        "%r1",
    )
    assert seen == [11 * (1 + 2 + 4)] * 32  # x becomes (x + 1) + (x + 10)


def test_lanes_meet_before_they_go_around_a_loop_again() -> None:
    """A loop with two branches back to its head, and one inside whose lanes go around different numbers of times."""
    seen = by_lane(
        "mov.b32 %r1, 0; mov.b32 %r2, 0;"
        "HEAD: vote.sync.ballot.b32 %r3, 1, -1; add.s32 %r2, %r2, 1; mov.b32 %r4, 0;"
        "INNER: add.s32 %r1, %r1, 1; add.s32 %r4, %r4, 1; setp.le.u32 %p1, %r4, %r0; @%p1 bra INNER;"
        "setp.ge.u32 %p2, %r2, 3; @%p2 bra END;"
        "setp.lt.u32 %p3, %r0, 7; @%p3 bra HEAD;"
        "add.s32 %r1, %r1, 100; bra HEAD;"
        "END: shfl.sync.idx.b32 %r5, %r1, 9, 31, -1; add.s32 %r1, %r1, %r5;",
        "%r1",
    )

    def counted(lane: int) -> int:
        return 3 * (lane + 1) + 200 * (lane >= 7)

    assert seen == [counted(lane) + counted(9) for lane in range(32)]

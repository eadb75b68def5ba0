"""`python -m bench resources`: how code is read, and what is held for a problem."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from bench import resources
from bench.__main__ import main
from bench.compiled import examination
from bench.compiled.launches import HOPPER, MI300, name_of, tuned_kernels
from bench.compiled.machine_code import Access, Demand, accesses_of, of_amd
from bench.verification.operations import OPERATIONS
from bench.virtual_gpu.ptx import parse

PTX = """
.version 8.7
.target sm_90a
.address_size 64
.visible .entry walk(
	.param .u64 .ptr .global .align 1 walk_param_0,
	.param .u64 .ptr .global .align 1 walk_param_1,
	.param .u32 walk_param_2,
	.param .u64 walk_param_3
)
.reqntid 32
{
	.reg .pred %p<3>;
	.reg .b16 %rs<4>;
	.reg .b32 %r<12>;
	.reg .b64 %rd<14>;
	ld.param.b64 %rd1, [walk_param_0];
	ld.param.b64 %rd2, [walk_param_1];
	ld.param.b32 %r1, [walk_param_2];
	ld.param.b64 %rd3, [walk_param_3];
	mov.u32 %r2, %tid.x;
	mul.wide.s32 %rd4, %r2, 16;
	add.s64 %rd5, %rd1, %rd4;
	add.s64 %rd6, %rd5, %rd3;
	mov.b64 %rd7, %rd2;
$L__loop:
	ld.global.v4.b32 {%r3, %r4, %r5, %r6}, [%rd6+16];
	@%p1 ld.global.L1::evict_last.b16 {%rs1}, [%rd9];
	add.s64 %rd8, %rd6, 2;
	mov.b64 %rd9, %rd8;
	cvt.u64.u32 %rd10, %r3;
	add.s64 %rd11, %rd7, %rd10;
	st.global.v2.b32 [%rd11], {%r3, %r4};
	atom.global.gpu.relaxed.max.s32 %r7, [%rd11+4], %r5;
	st.shared.b32 [%r2], %r5;
	@%p2 bra $L__loop;
	ret;
}
"""


def test_accesses_and_the_arguments_they_go_through() -> None:
    """Through a loop: the second load's address is made below it. The last parameter is a number."""
    found = accesses_of(parse(PTX, "walk"), ["input_ptr", "out_ptr", None, None])
    assert found == [
        Access("load", 16, "ld.global.v4.b32", ("input_ptr",)),
        Access("load", 2, "ld.global.L1::evict_last.b16", ("input_ptr",)),
        Access("store", 8, "st.global.v2.b32", ("out_ptr",)),
        Access("atomic", 4, "atom.global.gpu.relaxed.max.s32", ("out_ptr",)),
    ]


def test_a_parameter_that_is_chosen_by_its_place() -> None:
    """As LLVM writes a choice between two pointers that are arguments."""
    chosen = """
	mov.b64 %rd1, walk_param_0;
	mov.b64 %rd2, walk_param_1;
	selp.b64 %rd3, %rd1, %rd2, %p1;
	ld.param.b64 %rd4, [%rd3];
	ld.global.v2.b32 {%r1, %r2}, [%rd4+8];
	ret;
}
"""
    head, _ = PTX.split("	ld.param", 1)
    found = accesses_of(parse(head + chosen, "walk"), ["first", "second", None, None])
    assert found == [Access("load", 8, "ld.global.v2.b32", ("first", "second"))]


def test_amd_code() -> None:
    code = """
	global_load_dwordx4 v[0:3], v4, s[0:1]
	buffer_load_ushort v5, v6, s[4:7], 0 offen
	global_load_short_d16_hi v5, v6, s[4:5]
	buffer_store_dwordx2 v[0:1], v4, s[4:7], 0 offen
	global_atomic_smax v4, v5, s[0:1]
    .vgpr_count:     37
    .vgpr_spill_count: 2
    .sgpr_spill_count: 0
    .private_segment_fixed_size: 12
"""
    demand = of_amd(SimpleNamespace(asm={"amdgcn": code}, metadata=SimpleNamespace(shared=64)))
    assert (demand.registers, demand.spilled, demand.shared) == (37, 14, 64)
    assert demand.widths("load") == [16, 2]
    assert demand.widths("store") == [8]
    assert demand.atomics == ["atomic_smax"]


WIDE, NARROW = (
    Access("load", 16, "ld.global.v4.b32", ("input_ptr",)),
    Access("load", 4, "ld.global.b32", ("input_ptr",)),
)


@pytest.mark.parametrize(
    ("demand", "told"),
    [
        (Demand(128, 0, 0, (WIDE,)), ""),
        (Demand(129, 0, 0, (WIDE,)), "129 registers are more than 128"),
        (Demand(20, 8, 0, (WIDE,)), "8 bytes or registers are spilled"),
        (Demand(20, 0, 0, (WIDE, NARROW)), "input_ptr is read less than 16 bytes at a time: ld.global.b32"),
        (Demand(20, 0, 0, (Access("load", 4, "ld.global.b32", ("rois_ptr",)),)), "no load of input_ptr is found"),
    ],
)
def test_problems(demand: Demand, told: str) -> None:
    assert list(examination.problems(demand, {"input_ptr": 16}, HOPPER)) == ([told] if told else [])
    if "input_ptr" not in told:  # AMD's code does not say whose a load is
        assert list(examination.problems(demand, {"input_ptr": 16}, MI300)) == ([told] if told else [])


def test_narrow_loads_on_amd() -> None:
    """Where a whole row is short, 4 bytes may be as wide as can be."""
    narrow = Demand(20, 0, 0, (NARROW,))
    told = "nothing is read more than 4 bytes at a time, input_ptr neither"
    assert list(examination.problems(narrow, {"input_ptr": 16}, MI300)) == [told]
    assert list(examination.problems(narrow, {"input_ptr": 4}, MI300)) == []
    assert list(examination.problems(narrow, {}, MI300)) == []


def test_a_problem_ends_the_run_with_1() -> None:
    good = examination.Row("a_kernel", "op", "BLOCK 4", "sm_90", Demand(20, 0, 0, (WIDE,)), ())
    bad = examination.Row("b_kernel", "op", "BLOCK 4", "sm_90", None, ("does not compile",))
    for rows, code in (([good], 0), ([good, bad], 1)):
        target = Console(file=io.StringIO(), width=160)
        assert resources.report(rows, target, None) == code
        assert isinstance(target.file, io.StringIO)
        assert f"{len(rows)} compilations, {code} with a problem" in target.file.getvalue()


def test_what_is_for_checking_has_lines_of_its_own() -> None:
    judged = examination.Row("a_kernel", "op", "BLOCK 4", "sm_90", Demand(80, 0, 0, (WIDE,)), ())
    checking = replace(judged, demand=Demand(244, 16, 0, (WIDE,)), checking=True)
    target = Console(file=io.StringIO(), width=160)
    assert resources.report([checking, judged], target, None) == 0
    assert isinstance(target.file, io.StringIO)
    lines = [line.split("│")[1:6] for line in target.file.getvalue().splitlines() if "a_kernel" in line]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["a_kernel", "sm_90", "1", "80", "0"],
        ["a_kernel, float64", "sm_90", "1", "244", "16"],
    ]


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--target", "sm_1"], "no target 'sm_1'; there is sm_80, sm_90, sm_100, gfx942"),
        (["--operation", "roi"], "no operation 'roi'; there is roi_align"),
        (["--operation", "nms", "--kernel", "_no_kernel"], "launch none of these kernels"),
        (["--jobs", "0"], "jobs is 0; it must be 1 or more"),
    ],
)
def test_a_wrong_call(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resources", "--dtype", "float32", *arguments]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.compiled
def test_kernels_with_hot_loads_are_those_that_are_launched() -> None:
    """A kernel or an argument that has another name by now would go without its check."""
    operations = ("multiscale_roi_align", "roi_pool", "mask_predict")
    launches = [launch for _, launch in resources.launches(operations, ["float32", "bfloat16"])]
    found = {launch.name: launch for launch in launches if launch.arguments.get("CHANNELS_LAST", True)}
    for kernel, arguments in examination.HOT_LOADS.items():
        assert set(arguments) <= set(found[kernel].kernel.arg_names)
        assert set(arguments) == set(examination.hot_bytes(found[kernel], found[kernel].configs[0], HOPPER))


@pytest.mark.compiled
def test_loads_of_every_kernel_are_judged_or_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = [kernel for kernels in examination.NOT_JUDGED.values() for kernel in kernels]
    assert len(reasons) == len(set(reasons))
    assert not set(reasons) & set(examination.HOT_LOADS)
    monkeypatch.setattr(resources, "scenes_of", lambda _: (resources.HEAD, resources.ADAPTIVE, resources.LISTS[2]))
    launched = {launch.name for _, launch in resources.launches(tuple(OPERATIONS), ["float32"])}
    assert launched == {*reasons, *examination.HOT_LOADS}


@pytest.mark.compiled
def test_the_gather_reads_four_channels_a_thread_or_16_bytes() -> None:
    for dtype, widest in (("bfloat16", 8), ("float16", 8), ("float32", 16)):
        launches = [each for _, each in resources.launches(["multiscale_roi_align"], [dtype])]
        gather = next(each for each in launches if each.name == "gather_kernel")
        asked = [examination.hot_bytes(gather, config, HOPPER)["grad_ptr"] for config in gather.configs]
        assert max(asked) == widest
        row = examination.examine(gather, "a test", gather.configs[asked.index(widest)], "sm_80")
        assert row.problems == ()


@pytest.mark.compiled
def test_a_configuration_is_compiled_and_read() -> None:
    launches = [launch for _, launch in resources.launches(["roi_align"], ["float32"])]
    launch = next(each for each in launches if each.name == "_neighbours_kernel")
    for target in ("sm_90", "gfx942"):
        (config, *_) = launch.configs_on(examination.TARGETS[target])
        row = examination.examine(launch, "a test", config, target)
        assert row.demand is not None
        assert row.demand.registers > 10
        assert 16 in row.demand.widths("load")
        assert row.demand.widths("store") == [16]
        assert row.demand.atomics == []


@pytest.mark.compiled
@pytest.mark.parametrize(("dtype", "judged"), [("float16", True), ("float64", False)])
def test_what_is_for_checking_is_not_judged(dtype: str, judged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "MOST_REGISTERS", 1)
    monkeypatch.setattr(resources, "scenes_of", lambda _: (resources.HEAD,))
    _, launch = next(iter(resources.launches(["decode_boxes"], [dtype])))
    row = examination.examine(launch, "a test", launch.configs[0], "sm_90")
    assert row.demand is not None
    assert bool(row.problems) == judged


@pytest.mark.compiled
def test_long_lists_and_large_masks_are_compiled() -> None:
    """Where code depends on the size: a launch of each, or nobody would see what spills there."""
    found = list(resources.launches(("segmented_nms", "mask_loss:packed"), ["float32"]))
    lists = {launch.arguments["num_boxes"] for _, launch in found if launch.name == "_reduce_kernel"}
    assert lists == {1_000, 6_000, 20_000}
    assert {launch.arguments["BOXES"] for _, launch in found if launch.name == "_at_once_kernel"} == {64, 128, 256}
    losses = [launch.arguments for _, launch in found if launch.name == "_loss_kernel"]
    assert {(each["SIZE"], each["RATIO"]) for each in losses} == {(28, 2), (28, 0), (56, 2), (56, 0)}


def compiled(pick: resources.Arguments) -> list[resources.Compiled]:
    return [each for _, some in resources.compiled(pick) for each in some]


@pytest.mark.compiled
def test_processes_give_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MRCNN_VIRTUAL_GPU_CACHE", str(tmp_path))
    pick = resources.Arguments(("match_boxes",), (), ("float32", "bfloat16"), ("sm_90",), fresh=True)
    alone, together = (compiled(replace(pick, jobs=jobs)) for jobs in (1, 2))
    assert {each.row.kernel for each in alone} == {"_best_kernel", "_forced_kernel"}
    assert together == alone


@pytest.mark.compiled
def test_rows_without_a_problem_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MRCNN_VIRTUAL_GPU_CACHE", str(tmp_path))
    monkeypatch.setattr(resources, "scenes_of", lambda _: resources.LISTS[2:3])
    pick = resources.Arguments(("nms",), ("_mask_kernel",), ("float32", "bfloat16"), ("sm_90", "gfx942"), jobs=1)

    made, again = compiled(pick), compiled(pick)
    assert {each.row.target for each in made} == {"sm_90", "gfx942"}
    assert len({each.key for each in made}) == len(made)
    assert again == [replace(each, remembered=True) for each in made]
    assert not any(each.remembered for each in made)
    monkeypatch.setattr(examination, "MOST_REGISTERS", 1)
    for fresh in (True, False):  # what was kept before is not believed any more
        assert all(each.row.problems and not each.remembered for each in compiled(replace(pick, fresh=fresh)))


def test_a_configuration_that_nothing_is_compiled_for_is_told() -> None:
    """What the command says holds for every configuration that there is."""
    listed = [(name_of(kernel), examination.told(config)) for kernel in tuned_kernels() for config in kernel.configs]
    rows = [examination.Row(kernel, "", config, "sm_90", None, ()) for kernel, config in listed]
    assert resources.never_compiled(rows) == []
    name, config = listed[7]
    assert resources.never_compiled([*rows[:7], *rows[8:]]) == [f"{name}, {config}"]
    assert not resources.picked(resources.Arguments(json=Path("rows.json"), fresh=True, jobs=2))
    assert resources.picked(resources.Arguments(target=("sm_90",)))


def test_every_configuration_is_compiled_for_some_launch() -> None:
    """Of the operations whose configurations depend on the maps; in one dtype of 32 bits and one of 16."""
    found: dict[str, set[str]] = {}
    for operation in ("multiscale_roi_align", "roi_pool", "mask_predict", "mask_predict_loss"):
        for _, launch in resources.launches([operation], ["float32", "bfloat16"]):
            configs = found.setdefault(launch.name, set())
            configs |= {str(config) for target in (HOPPER, MI300) for config in launch.configs_on(target) if config}
    listed = {name_of(kernel): {str(config) for config in kernel.configs} for kernel in tuned_kernels()}
    assert {"gather_kernel", "_channels_last_kernel", "_neighbours_kernel", "_pool_kernel"} < set(found)
    assert {"_logits_kernel", "_class_gradient_kernel"} < set(found)
    for name in set(found) & set(listed):
        assert found[name] == listed[name], name

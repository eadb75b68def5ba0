"""The logic of times, with a clock that is made up: turns, percentiles, rows."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from triton.knobs import CompileTimes

import kernels
from bench import kernels as command
from bench.cases import QUICK
from bench.kernel_figures import times as kernel_times
from bench.kernel_figures.cases import OPERATIONS, WITH_BARS, Case, Inputs, cases, mask_loss, roi_align, segmented_nms
from bench.kernel_figures.checks import WrongResult
from bench.kernel_figures.peer_checks import check_timed_peer
from bench.kernel_figures.times import Provider, copy_bandwidth, on_device, spread, time_case
from bench.results import Row


class FakeClock:
    """Calls, and says times that grow with each call."""

    device = "cpu"

    def __init__(self, cache_bytes: int = 0, seconds: float = 0.5) -> None:
        self.cache_bytes = cache_bytes
        self.seconds = seconds
        self.calls = 0
        self.launching = 0.0

    def on_device(self, function: Callable[[], Any], launching: float = 0.0) -> float:
        function()
        self.calls += 1
        self.launching = launching
        return 1e-3 * self.calls

    def on_host(self, function: Callable[[], Any]) -> float:
        function()
        return 5e-6

    def to_end(self, function: Callable[[], Any]) -> float:
        function()
        return self.seconds


def eager(case: Any, function: Any = None) -> Provider:
    return Provider(
        "eager", case.dtype_name, case.layout, function or case.ours, case.inputs, lambda: kernels.use("eager")
    )


def note_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names, as they come, of functions that run having gone through torch.compile, which does nothing."""
    compiled: list[str] = []

    def compiling(function: Any) -> Any:
        def noted(*arguments: Any) -> Any:
            compiled.append(function.__name__)
            return function(*arguments)

        return noted

    monkeypatch.setattr(torch, "compile", compiling)
    return compiled


def test_compiling_is_told_from_the_rest_of_the_first_call() -> None:
    """By what Triton's compiler says, here twice 0.1 s of it for one call."""
    case = segmented_nms(4, QUICK)

    def compiled(inputs: Inputs) -> tuple[Tensor, ...]:
        listener = triton.knobs.compilation.listener
        for _ in range(2 if listener else 0):
            times = CompileTimes(50_000, [("ttir", 20_000), ("ptx", 10_000)], 20_000)
            listener(src=None, metadata={}, metadata_group={}, times=times, cache_hit=False)
        return case.ours(inputs)

    (row,) = time_case(case, eager(case, compiled), FakeClock(), 1e9, rounds=1)
    assert row.figures["compiling, s"] == pytest.approx(0.2)
    assert row.figures["tuning and the rest of the first call, s"] == pytest.approx(0.3 - 1e-6 * row.figures["us"])


def test_percentiles_between_samples() -> None:
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0, 0.0]) == pytest.approx((1.0, 2.5, 4.0))
    assert spread([1.0, 2.0]) == pytest.approx((1.2, 1.5, 1.8))
    assert spread([7.0]) == (7.0, 7.0, 7.0)


def test_turns_take_twice_the_cache_between_two_uses() -> None:
    inputs: Inputs = {"leaves": [torch.ones(25).requires_grad_()], "rois": torch.zeros(25), "ratio": 2}
    for cache, copies in ((0, 1), (99, 2), (100, 2), (101, 3), (1000, 11)):
        turns = on_device(inputs, FakeClock(cache))
        assert len(turns) == copies
        assert (len(turns) - 1) * 200 >= 2 * cache
        places = {turn["rois"].data_ptr() for turn in turns} | {turn["leaves"][0].data_ptr() for turn in turns}
        assert len(places) == 2 * copies
        assert all(turn["leaves"][0].requires_grad and turn["leaves"][0].is_leaf for turn in turns)
        assert not turns[0]["rois"].requires_grad
        assert turns[0]["ratio"] == 2


def test_copies_keep_the_memory_format() -> None:
    feature = torch.ones(1, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    (turn,) = on_device({"leaves": [feature]}, FakeClock())
    assert turn["leaves"][0].is_contiguous(memory_format=torch.channels_last)


def test_the_gpu_is_busy_then_swept_before_a_call_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """For at least twice as long as launching takes, at the clock of any GPU."""
    done: list[Any] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("record")

        def synchronize(self) -> None:
            done.append("synchronize")

        def elapsed_time(self, end: "Event") -> float:
            return 3.0

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(L2_cache_size=4096))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", done.append)
    monkeypatch.setattr(kernel_times.CudaClock, "device", "cpu")
    clock = kernel_times.CudaClock()
    assert clock.swept.nbytes == 2 * 4096
    monkeypatch.setattr(clock, "sweep_cache", lambda: done.append("swept"))
    assert clock.on_device(lambda: done.append("call"), launching=0.01) == 3e-3
    busy, *rest = done
    assert busy >= 0.02 * 2.5e9
    assert rest == ["swept", "record", "call", "record", "synchronize"]


def test_a_copy_reads_and_writes() -> None:
    # The median of 1, 2, 3 ms for 2 x 1,000 bytes.
    assert copy_bandwidth(FakeClock(), 1_000, rounds=3) == pytest.approx(2_000 / 2e-3)


def test_rows_of_forward_backward_and_both() -> None:
    case = roi_align(7, torch.float32, "channels last", 4, QUICK)
    clock = FakeClock()
    rows = time_case(case, eager(case), clock, bandwidth=1e9, rounds=3)
    assert [row.case for row in rows] == [
        f"roi_align 7x7, {direction}" for direction in ("forward", "backward", "forward and backward")
    ]
    assert clock.calls == 9
    assert clock.launching == pytest.approx(5e-6)
    least = case.least(case.inputs())
    for row, median, count in zip(rows, (2e-3, 5e-3, 8e-3), (*least.values(), sum(least.values())), strict=True):
        assert row.figures["us"] == pytest.approx(1e6 * median)
        assert row.figures["p20, us"] == pytest.approx(1e6 * median - 600)
        assert row.figures["p80, us"] == pytest.approx(1e6 * median + 600)
        assert row.figures["host, us"] == pytest.approx(5)
        assert row.figures["GB/s"] == pytest.approx(1e-9 * count / median)
        assert row.figures["share of copy bandwidth"] == pytest.approx(count / median / 1e9)
        assert row.figures["compiling, s"] == 0
        assert row.figures["tuning and the rest of the first call, s"] == pytest.approx(0.5 - median)
        assert row.by == "eager"
    (only,) = time_case(segmented_nms(4, QUICK), eager(segmented_nms(4, QUICK)), FakeClock(), 1e9, rounds=1)
    assert only.case.endswith("forward")


def test_slow_calls_have_fewer_rounds() -> None:
    case = segmented_nms(4, QUICK)
    for seconds, rounds in ((0.2, 20), (1.0, 10), (3.0, 5)):
        clock = FakeClock(seconds=seconds)
        time_case(case, eager(case), clock, 1e9, rounds=20)
        assert clock.calls == rounds


def test_inputs_take_turns() -> None:
    case = mask_loss(2, torch.float32, 4, QUICK)
    seen: list[int] = []

    def noting(inputs: Inputs) -> tuple[Tensor, ...]:
        seen.append(inputs["leaves"][0].data_ptr())
        return case.ours(inputs)

    size = sum(each.numel() * each.element_size() for each in [*case.inputs()["leaves"], case.inputs()["masks"]])
    time_case(case, eager(case, noting), FakeClock(size), 1e9, rounds=6)
    turns = len(set(seen))
    assert turns == 3
    forward = seen[2 : 2 + kernel_times.WARM_UP + 6]
    assert len(set(forward[:3])) == 3
    assert forward[kernel_times.WARM_UP] == forward[kernel_times.WARM_UP + 3]


def test_what_is_wrong_is_not_timed() -> None:
    case = roi_align(7, torch.bfloat16, "channels last", 4, QUICK)
    clock = FakeClock()

    def wrong(inputs: Inputs) -> tuple[Tensor, ...]:
        (out,) = case.ours(inputs)
        return (out + 0.02 * out.detach().abs().max() * (torch.arange(out.numel()) == 5).view(out.shape),)

    with pytest.raises(WrongResult, match="roi_align 7x7, bfloat16 channels last"):
        time_case(case, eager(case, wrong), clock, 1e9, rounds=1)
    nms = segmented_nms(4, QUICK)

    def last_box_lost(inputs: Inputs) -> tuple[Tensor, ...]:
        keep, counts = nms.ours(inputs)
        keep[0, int(counts[0]) - 1] = -1
        return keep, counts

    with pytest.raises(WrongResult, match="1 of "):
        time_case(nms, eager(nms, last_box_lost), clock, 1e9, rounds=1)
    assert clock.calls == 0


def test_batched_nms_is_not_timed_if_it_keeps_other_boxes() -> None:
    """Each segment keeps more boxes than count here, so that the best of all matters and the last does not."""
    case = segmented_nms(4, QUICK)
    assert case.timed_peer is not None
    (kept,) = case.timed_peer(case.peer_inputs())
    clock = FakeClock()

    def time(answer: Tensor) -> list[Row]:
        changed = replace(case, timed_peer=lambda inputs: (answer,))
        provider = next(each for each in kernel_times.providers(changed) if each.name == "torchvision")
        return time_case(changed, provider, clock, 1e9, rounds=1)

    with pytest.raises(WrongResult, match="of segment"):
        time(kept[1:])
    with pytest.raises(WrongResult, match="of segment"):
        time((kept + 1) % (QUICK.segments * QUICK.boxes))
    assert clock.calls == 0
    for right in (kept, kept[:-1]):
        (row,) = time(right)
        assert row.by == "torchvision"


def test_providers_and_what_they_activate(monkeypatch: pytest.MonkeyPatch) -> None:
    case = roi_align(7, torch.float32, "contiguous", 4, QUICK)
    compiled = note_what_is_compiled(monkeypatch)
    names = {provider.name: provider for provider in kernel_times.providers(case)}
    assert list(names) == ["torchvision", "ours", "eager", "torch.compile of eager"]
    for name, calls in (("torchvision", []), ("eager", []), ("torch.compile of eager", ["roi_align"])):
        with names[name].active():
            inputs = names[name].inputs()
            names[name].function(inputs)
        assert compiled == calls
    assert names["torchvision"].active is ExitStack
    assert (names["torchvision"].dtype, names["torchvision"].layout) == ("float32", "contiguous")


def test_each_case_is_compiled_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what would go on uncompiled, as it was compiled too often, is an error."""
    note_what_is_compiled(monkeypatch)
    resets: list[bool] = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(True))
    (case,) = cases(operations=["paste_masks"], workload=QUICK)
    provider = next(each for each in kernel_times.providers(case) if each.name == "torch.compile of eager")
    for number in (1, 2):
        with provider.active():
            assert torch._dynamo.config.fail_on_recompile_limit_hit
            assert not torch.autograd.is_multithreading_enabled()
        assert len(resets) == number
    assert not torch._dynamo.config.fail_on_recompile_limit_hit


def test_ours_in_the_context_of_the_provider() -> None:
    case = roi_align(7, torch.float32, "contiguous", 4, QUICK)
    names = {provider.name: provider for provider in kernel_times.providers(case)}
    with names["ours"].active():
        assert kernels.dispatch.asked_for() == "triton"


def name_of(case: Case) -> str:
    return f"{case.name}, {case.dtype_name} {case.layout}"


NOT_ABOVE = [name for name in OPERATIONS if name not in WITH_BARS]


@pytest.mark.parametrize("case", list(cases(operations=NOT_ABOVE, workload=QUICK)), ids=name_of)
def test_every_case_is_right_and_every_provider_of_it_is_timed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but ours, which needs a GPU; the virtual one runs it in `virtual_gpu/test_virtual_kernel_counts.py`."""
    compiled = note_what_is_compiled(monkeypatch)
    monkeypatch.setattr(kernel_times, "WARM_UP", 1)
    least = case.least(case.inputs())
    assert least
    assert min(least.values()) > 0
    directions = [*least, "forward and backward"] if len(least) > 1 else list(least)
    others = [each for each in kernel_times.providers(case) if each.name != "ours"]
    assert len(others) == 3
    for provider in others:
        rows = time_case(case, provider, FakeClock(), bandwidth=1e9, rounds=1)
        assert [row.case for row in rows] == [f"{case.name}, {direction}" for direction in directions]
        assert all(row.figures["share of copy bandwidth"] > 0 for row in rows)
        assert bool(compiled) is (provider.name == "torch.compile of eager")
    assert set(compiled) == {name for names in kernel_times.EAGER[case.operation].values() for name in names}


@pytest.mark.parametrize("case", list(cases((4,), NOT_ABOVE, [torch.float32], QUICK)), ids=name_of)
def test_a_wrong_result_of_any_case_is_seen(case: Case) -> None:
    """By the first result, off by a thousandth of itself, or by one place."""

    def wrong(inputs: Inputs) -> tuple[Tensor, ...]:
        first, *rest = case.ours(inputs)
        off = first.roll(1) if not first.is_floating_point() else 1.001 * first
        return off, *rest

    with pytest.raises(WrongResult, match=case.operation):
        time_case(case, eager(case, wrong), FakeClock(), 1e9, rounds=1)


def test_the_command_goes_on_past_what_is_wrong_or_does_not_compile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (case,) = cases(operations=["decode_boxes"], dtypes=[torch.float32], workload=QUICK)

    def some(case: Case) -> list[Provider]:
        def rounded(inputs: Inputs) -> tuple[Tensor, ...]:
            return tuple(each.round() for each in case.ours(inputs))

        def failing(_: Inputs) -> tuple[Tensor, ...]:
            raise TorchDynamoException("cannot\nbe compiled")

        def too_often(_: Inputs) -> tuple[Tensor, ...]:
            raise FailOnRecompileLimitHit("compiled too often")

        return [eager(case, failing), eager(case, too_often), eager(case, rounded), eager(case)]

    monkeypatch.setattr(kernel_times, "CudaClock", FakeClock)
    monkeypatch.setattr(kernel_times, "copy_bandwidth", lambda _: 1e9)
    monkeypatch.setattr(kernel_times, "providers", some)
    wrong: list[str] = []
    picks = command.parse(["--operation", "decode_boxes", "--dtype", "float32", "--seeds", "4", "--quick"])
    rows, lines = command.times(picks, wrong)
    assert [row.case for row in rows] == [f"{case.name}, forward"]
    assert lines == []
    assert len(wrong) == 1
    assert "largest error" in wrong[0]
    out = capsys.readouterr().out
    assert "decode_boxes 2 x 2 x 300, float32: no eager, cannot\n" in out
    assert "no eager, compiled too often\n" in out


def test_torchvision_is_timed_once_for_all_dtypes_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes in float32 and says so; ours are told as shares of its time."""

    def without_a_gpu(case: Case) -> list[Provider]:
        return [each for each in kernel_times.providers(case) if each.name in ("torchvision", "eager")]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernel_times, "CudaClock", FakeClock)
    monkeypatch.setattr(kernel_times, "copy_bandwidth", lambda _: 1e9)
    monkeypatch.setattr(command, "kernel_times", SimpleNamespace(**{**vars(kernel_times), "providers": without_a_gpu}))
    rows, _ = command.times(command.parse(["--operation", "decode_boxes", "--seeds", "4", "5", "--quick"]), [])
    told = [(row.by, row.dtype, row.layout, row.seed) for row in rows]
    assert told == [
        *(("torchvision", "float32", "contiguous", 4), ("eager", "float32", "contiguous", 4)),
        *(("torchvision", "float32", "contiguous", 5), ("eager", "float32", "contiguous", 5)),
        *(("eager", "bfloat16", "contiguous", 4), ("eager", "bfloat16", "contiguous", 5)),
    ]
    assert len({row.key for row in rows}) == len(rows)
    theirs = {row.seed: row.figures["us"] for row in rows if row.by == "torchvision"}
    for row in rows:
        if row.by != "torchvision":
            assert row.figures["time / torchvision's"] == row.figures["us"] / theirs[row.seed]


@pytest.mark.parametrize("operation", ["segmented_nms", "batched_nms", "match_boxes", "decode_boxes", "mask_runs"])
def test_what_torchvision_gives_in_another_shape_is_checked_too(operation: str) -> None:
    (case, *_) = cases(operations=[operation], workload=QUICK)
    assert case.timed_peer is not None
    right = case.timed_peer(case.peer_inputs())
    check_timed_peer(case, right)
    for place in range(len(right)):
        changed = [each.clone() for each in right]
        changed[place].view(-1)[0] += 1
        with pytest.raises(WrongResult, match=operation):
            check_timed_peer(case, tuple(changed))


def test_every_operation_has_an_eager_form_that_can_be_compiled() -> None:
    assert set(kernel_times.EAGER) == set(OPERATIONS)

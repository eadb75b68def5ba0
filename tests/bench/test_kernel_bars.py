"""The bars' table: ratios to torchvision's rows, and every seed counts; on made-up rows. What the command picks."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import kernels
from bench.bars import BARS as BARS_OF_THE_COMMAND
from bench.bars import Seen
from bench.cases import QUICK, Pyramid, Workload
from bench.kernel_figures import bars as kernel_bars
from bench.kernel_figures.bars import BARS, LINES, PROTOTYPE, TIME, Bar, seen, with_ratios
from bench.kernel_figures.cases import OPERATIONS, WITH_BARS, cases, regions
from bench.kernel_figures.torchvision_counts import TORCHVISION
from bench.results import Row, read

CASE = "roi_align 7x7, forward"


def peer(case: str = CASE, seed: int = 4, **figures: float) -> Row:
    return Row(case, "float32", "contiguous", seed, TORCHVISION, "", figures)


def ours(case: str = CASE, seed: int = 4, dtype: str = "float32", **figures: float) -> Row:
    return Row(case, dtype, "channels last", seed, "ours, virtual H100", "", figures)


def at_the_limit(case: str = CASE, seed: int = 4, dtype: str = "float32", **figures: float) -> Row:
    """A row with every figure that a bar is about, if none is given as its limit."""
    bars = [bar for bar in BARS if (bar.case, bar.dtype, bar.layout) == (case, dtype, "channels last")]
    limits = {bar.figure: float(bar.at_least if bar.most is None else bar.most) for bar in bars}  # type: ignore[arg-type]
    return ours(case, seed, dtype, **{**limits, **figures})


def about(figure: str, lines: Sequence[Seen]) -> Seen:
    (line,) = (each for each in lines if each.what.endswith(f": {figure}"))
    return line


def test_ratios_are_to_the_row_of_the_same_case_and_seed() -> None:
    figures = {"time bound, us": 200.0, "M instructions": 100.0, "M L1 lines": 40.0}
    rows = [
        peer(**figures),
        peer(seed=5, **{name: 2 * value for name, value in figures.items()}),
        peer("roi_align 14x14, forward", **{name: 9 * value for name, value in figures.items()}),
        peer("roi_align 7x7, backward", **{name: 7 * value for name, value in figures.items()}),
    ]
    mine = {"time bound, us": 50.0, "M instructions": 10.0, "M L1 lines": 4.0}
    for dtype in ("float32", "bfloat16"):
        row = with_ratios(ours(dtype=dtype, **mine), [*rows, ours(**mine)])
        assert (row.figures[TIME], row.figures[LINES]) == (0.25, 0.1)
    assert with_ratios(ours(seed=5, **mine), rows).figures[TIME] == 0.125
    assert TIME not in with_ratios(ours(seed=6, **mine), rows).figures
    assert with_ratios(rows[0], rows) == rows[0]


def test_ratios_of_nms_and_the_mask_loss() -> None:
    nms = ours("segmented_nms 10 x 2000, top 1000, forward", **{"mask kernel, M instructions": 3})
    ratios = with_ratios(nms, [peer("segmented_nms 10 x 2000, forward", **{"M instructions": 30})]).figures
    assert ratios["mask kernel, instructions / torchvision's"] == pytest.approx(0.1)
    path = peer("mask_loss 28x28, adaptive, forward and backward", **{"moved, MB": 400})
    forward, backward = (
        ours(f"mask_loss 28x28, ratio 2, {each}", **{"moved, MB": 8}) for each in ("forward", "backward")
    )
    assert with_ratios(forward, [path]).figures[kernel_bars.BYTES] == pytest.approx(0.02)
    assert kernel_bars.BYTES not in with_ratios(backward, [path]).figures


def test_a_bar_holds_only_if_it_holds_at_every_seed() -> None:
    good, edge, bad = (at_the_limit(seed=seed, **{TIME: value}) for seed, value in ((4, 0.29), (5, 0.30), (6, 0.301)))
    lines = seen([good, edge])
    assert all(line.holds for line in lines)
    line = about(TIME, lines)
    assert (line.asked, line.seen) == ("at most 0.3", "0.29  0.3")
    line = about(TIME, seen([good, bad, edge]))
    assert (line.seen, line.holds) == ("0.29  0.301  0.3", False)
    assert seen([ours("roi_align 28x28, forward", **{TIME: 9.0})]) == []


@pytest.mark.parametrize("figure", ["longest warp", TIME, "orders with the same bits"])
def test_a_figure_that_a_row_lacks_is_not_held(figure: str) -> None:
    """At one seed of three: a bar that is seldom measured is none."""
    rows = [at_the_limit("roi_align 7x7, backward", seed) for seed in (4, 5, 6)]
    assert all(line.holds for line in seen(rows))
    del rows[1].figures[figure]
    lines = seen(rows)
    assert [line for line in lines if not line.holds] == [about(figure, lines)]
    assert about(figure, lines).seen.split("  ")[1] == "not known"


@pytest.mark.parametrize(
    ("case", "time", "holds"),
    [
        (CASE, 204.9, True),
        (CASE, 213.1, True),
        (CASE, 204.7, False),
        (CASE, 213.3, False),
        ("roi_align 14x14, forward", 611, True),
        ("roi_align 7x7, backward", 611, False),
        ("roi_align 14x14, backward", 1170.2, True),
        ("segmented_nms 10 x 2000, forward", 167.4, False),
    ],
)
def test_torchvisions_bounds_are_those_of_the_prototype(case: str, time: float, holds: bool) -> None:
    rows = [peer(case, seed, **{"time bound, us": time}) for seed in (4, 5)]
    lines = seen([*rows, ours(case, **{"time bound, us": time})])
    (line,) = (each for each in lines if each.what.startswith("torchvision's"))
    assert (line.seen, line.holds) == (f"{time:,.1f}", holds)
    assert "within 2%" in line.asked


def test_limits_from_above_and_below() -> None:
    assert Bar("", "", "", 0).asked == "none"
    assert Bar("", "", "", 0).holds(0)
    assert not Bar("", "", "", 0).holds(1)
    assert Bar("", "", "", at_least=3).asked == "at least 3"
    assert Bar("", "", "", at_least=3).holds(3)
    assert not Bar("", "", "", at_least=3).holds(2)
    assert not Bar("", "", "", 1).holds(float("nan"))
    assert Bar("", "", "", 15_000).asked == "at most 15,000"


def test_every_bar_is_about_a_case_that_there_is() -> None:
    """A bar whose row nobody makes would never be seen to fail."""
    made = {
        (f"{case.name}, {direction}", case.dtype_name, case.layout)
        for case in cases()
        for direction in ("forward", "backward")
    }
    whole = next(cases(operations=["mask_predict_loss"]))
    made |= {(f"{whole.name}, forward and backward", dtype, whole.layout) for dtype in ("float32", "bfloat16")}
    assert {(bar.case, bar.dtype, bar.layout) for bar in BARS} <= made
    peers = {f"{case.name.partition(',')[0]}, {direction}" for case in cases() for direction in ("forward", "backward")}
    assert set(PROTOTYPE) <= peers


def test_the_least_bytes_of_roi_align(monkeypatch: pytest.MonkeyPatch) -> None:
    """A box of 28 x 28 pixels is 7 x 7 of P2; samples at a quarter and three quarters of each reach 8 x 8."""
    monkeypatch.setattr(regions, "proposals", lambda *_, **__: torch.tensor([[0.0, 0, 0, 28, 28]]))
    workload = Workload(Pyramid(1, 64, 96, 16), 1)
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        case = regions.roi_align(7, dtype, "channels last", 4, workload)
        least = case.least(case.inputs())
        others = 49 * 16 * size + 20
        assert least["forward"] == 64 * 16 * size + others
        assert least["backward"] == (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3) * 16 * size + others


def test_picks() -> None:
    picks = kernels.parse([])
    assert (picks.seeds, picks.quick) == ([4, 5, 6], False)
    names = {(case.operation, case.dtype) for case in cases((4,), ["mask_loss"], [torch.bfloat16])}
    assert names == {("mask_loss", torch.bfloat16)}
    with pytest.raises(SystemExit):
        kernels.parse(["--operation", "convolution"])
    everything = list(cases((4, 5), workload=QUICK))
    assert len(everything) == len({(case.name, case.dtype, case.layout, case.seed) for case in everything})
    assert len(list(cases((4, 5), WITH_BARS, workload=QUICK))) == 2 * 11


def test_all_operations_are_timed_on_a_gpu_and_those_with_bars_counted_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for there, where, names in ((True, "gpu", OPERATIONS), (False, "virtual", WITH_BARS)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert (kernels.parse([]).on, kernels.parse([]).operation) == (where, list(names))
        assert kernels.parse(["--on", "virtual"]).operation == list(WITH_BARS)
        assert kernels.parse(["--operation", *OPERATIONS]).operation == list(OPERATIONS)
    with pytest.raises(SystemExit):
        kernels.parse(["--on", "gpu"])


def test_bars_are_judged_where_there_is_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times have no bars: the virtual GPU is asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked: list[list[str]] = []
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr("bench.bars.subprocess.run", lambda command, check: asked.append(command[3:]) or done)
    BARS_OF_THE_COMMAND["kernels"]()
    picks = [kernels.parse(arguments[1:]) for arguments in asked]
    assert all(arguments[0] == "kernels" and pick.on == "virtual" for arguments, pick in zip(asked, picks, strict=True))
    assert sorted(name for pick in picks for name in pick.operation) == sorted(OPERATIONS)


def test_each_operation_has_cpu_times_once() -> None:
    pairs = kernels.cpu_pairs(["segmented_nms", "batched_nms", "match_boxes", "mask_loss", "paste_masks"])
    matching = next(cases(operations=["match_boxes"])).name
    assert list(pairs) == ["batched_nms of 5 x 2,000 boxes", matching, "paste of 100 masks into 800 x 1333"]
    assert all(kernels.cpu_pairs([operation]) for operation in OPERATIONS)


@pytest.mark.parametrize("wrong", [[], ["roi_align: it is wrong"]])
def test_the_command_writes_files_and_fails_for_what_is_wrong(
    wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def every(*arguments: object) -> list[tuple[Row, bool]]:
        told = next(each for each in arguments if each == [])
        assert isinstance(told, list)
        told += wrong
        return [(peer(**{"time bound, us": 2.0, "M instructions": 4, "M L1 lines": 1}), True)]

    monkeypatch.setattr(kernels, "kernel_rows", SimpleNamespace(every=every))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.main(["--quick", "--out", str(tmp_path), "--plot"]) == len(wrong)
    out = capsys.readouterr().out
    assert "1 of 1 rows come from the disk" in out
    assert all(each in out for each in wrong)
    assert read(tmp_path / "kernels.json").rows[0].figures["time bound, us"] == 2
    assert (tmp_path / "kernels.csv").read_text().count("\n") == 2
    assert (tmp_path / "kernels.png").stat().st_size > 1000

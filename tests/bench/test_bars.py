"""The bars' own arithmetic, on made-up measurements."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from bench import bars
from bench.__main__ import main
from bench.bars import Seen
from bench.cpu_operations import Pair
from bench.side_by_side import side_by_side


def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def printed(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def test_one_line_that_does_not_hold_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = Seen("speed", "at least 2", "3.1", True), Seen("size", "at most 5", "7", False)
    monkeypatch.setattr(bars, "BARS", {"first": lambda: [good], "second": lambda: [good, bad], "third": lambda: [good]})
    for names, holds in (([], False), (["first"], True), (["first", "third"], True), (["second"], False)):
        target = console()
        assert bars.run(names, target) is holds
        text = printed(target)
        assert ("at most 5" in text) is ("second" in names or not names)
        assert text.count("NO") == (0 if holds else 1)


def test_the_evaluators_bar_compares_all_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The expected figures are COCO's; here the command is replaced by one that is off by a little in one of them."""
    (tmp_path / "coco-eval").mkdir()
    (tmp_path / "coco-eval" / "expected.json").write_text(
        '{"order": ["AP", "AR"], "bbox": [0.5, 0.25], "segm": [1, 0]}'
    )
    answers = {"bbox": '{"AP": 0.5, "AR": 0.25}', "segm": '{"AP": 1, "AR": 2e-9}'}

    def command(*arguments: str) -> float:
        kind = arguments[arguments.index("--iou-type") + 1]
        Path(arguments[arguments.index("--json") + 1]).write_text(answers[kind])
        return 0.0

    monkeypatch.setattr(bars, "TEST_DATA", tmp_path)
    monkeypatch.setattr(bars, "_mrcnn", command)
    assert [line.holds for line in bars.evaluator()] == [True, False]


def test_pairs_without_a_bar_have_no_line() -> None:
    pairs = [Pair("batched_nms of 5 x 2,000 boxes", 1.0, 2.5), Pair("match_boxes", 2.0, 1.0)]
    (line,) = bars.of_pairs(pairs)
    assert (line.seen, line.holds) == ("1000.0 ms and 2500.0 ms: 2.5", True)


def test_a_command_that_fails_is_an_error_and_not_a_figure() -> None:
    with pytest.raises(RuntimeError, match="nowhere"):
        bars._mrcnn("eval", "--annotations", "nowhere.json", "--results", "nowhere.json")


@pytest.mark.parametrize("arguments", [[], ["bar"], ["bars", "unknown"]])
def test_a_wrong_call_says_what_there_is(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage: python -m bench bars" in capsys.readouterr().err


def test_side_by_side_takes_turns_and_medians_and_leaves_the_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = 0.0, []
    durations = {"a": iter([50.0, 1.0, 9.0, 2.0]), "b": iter([70.0, 3.0, 3.0, 4.0])}

    def spend(name: str) -> None:
        nonlocal now
        calls.append(name)
        now += next(durations[name])

    monkeypatch.setattr("bench.side_by_side.time.perf_counter", lambda: now)
    seconds = side_by_side({"a": lambda: spend("a"), "b": lambda: spend("b")}, rounds=3)
    assert seconds == {"a": 2.0, "b": 3.0}
    assert calls == ["a", "b"] * 4

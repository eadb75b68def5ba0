"""What a command leaves: folders, logs, and lines of progress."""

import io
import json

import pytest
from rich.console import Console

from mrcnn.engine.output import (
    MetricsLog,
    OutputError,
    ProgressLine,
    read_metrics,
    writable_folder,
    write_json,
)


def test_writable_folder_makes_parents_and_leaves_nothing(tmp_path):
    folder = writable_folder(tmp_path / "a" / "b")
    assert list(folder.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=f"{path}: cannot be used as an output folder"):
            writable_folder(path)
    with pytest.raises(OutputError, match="cannot be written"):
        write_json(tmp_path / "missing" / "x.json", {})


def test_json_replaces_whole_files(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_metrics_are_lines_that_a_resumed_run_continues(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": 1 / step})
    log.write({"step": 30, "eval": {"segm": {"AP": 0.25}}})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # a killed run
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 30, 30]

    log = MetricsLog(tmp_path, from_step=20)
    log.write({"step": 30, "loss": 7.0})
    log.close()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(record["step"], record["loss"]) for record in records] == [(10, 0.1), (20, 0.05), (30, 7.0)]

    MetricsLog(tmp_path).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_tensorboard_gets_nested_numbers(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = MetricsLog(tmp_path)
    log.write({"step": 5, "loss": 0.5})
    log.write({"step": 5, "eval": {"segm": {"AP": 0.25}}})
    log.close()
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(5, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("eval/segm/AP")] == [(5, 0.25)]


def progress_text(monkeypatch, *, terminal):
    """What 40 units show, at one second each, the first 10 done before."""
    clock = iter(range(1000))
    monkeypatch.setattr("mrcnn.engine.output.time.perf_counter", lambda: float(next(clock)))
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=150)
    with ProgressLine(console, "training", total=40, done=10) as progress:
        progress.note = "loss 0.5"
        for _ in range(30):
            progress.advance()
    return text.getvalue()


def test_plain_lines_now_and_then_without_a_terminal(monkeypatch):
    lines = progress_text(monkeypatch, terminal=False).splitlines()
    assert lines[0] == "training 15/40  1.00 steps/s  0:25 left  loss 0.5"
    assert lines[-1] == "training 40/40  1.00 steps/s  0:00 left  loss 0.5"
    assert len(lines) == 6


def test_a_bar_on_a_terminal(monkeypatch):
    text = progress_text(monkeypatch, terminal=True)
    assert "40/40" in text
    assert "steps/s" in text
    assert "loss 0.5" in text

"""Rows in files, what changed between two of them, and results that are kept on disk."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import cache, compare
from bench.results import Results, Row, differences, read, write_csv, write_json


def row(case: str = "pool", by: str = "ours", seed: int = 4, **figures: float) -> Row:
    return Row(case, "float32", "contiguous", seed, by, "_kernel: BLOCK: 8, num_warps: 4", figures)


def test_json_gives_back_what_was_written_and_csv_has_a_column_a_figure(tmp_path: Path) -> None:
    results = Results({"device": "a, b", "torch": "2"}, [row(us=1.5, GB=2), row("nms", us=3.25)])
    write_json(tmp_path / "new" / "a.json", results)
    assert read(tmp_path / "new" / "a.json") == results
    write_csv(tmp_path / "a.csv", results)
    with (tmp_path / "a.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["us"] for line in lines] == ["1.5", "3.25"]
    assert [line["GB"] for line in lines] == ["2", ""]
    assert {line["device"] for line in lines} == {"a, b"}
    assert lines[1]["case"] == "nms"
    assert lines[0]["config"] == "_kernel: BLOCK: 8, num_warps: 4"


def test_differences_are_ratios_of_the_second_to_the_first() -> None:
    first = [row(us=2.0, MB=5, waits=0, gone=1), row("nms", us=1), row(by="torchvision", us=1)]
    second = [row(us=3.0, MB=5, waits=2, come=1), row("nms", us=1), row(seed=5, us=1)]
    lines, only_first, only_second = differences(first, second)
    assert lines == [
        "pool, float32 contiguous, seed 4, ours: us x 1.500, waits from 0 to 2, gone only in the first, "
        "come only in the second, 1 the same",
        "nms, float32 contiguous, seed 4, ours: 1 the same",
    ]
    assert only_first == ["pool, float32 contiguous, seed 4, torchvision"]
    assert only_second == ["pool, float32 contiguous, seed 5, ours"]


def test_another_configuration_is_told() -> None:
    (line,), _, _ = differences([row(us=2.0)], [replace(row(us=1.0), config="_kernel: BLOCK: 16")])
    assert line.endswith(": us x 0.500, from '_kernel: BLOCK: 8, num_warps: 4' to '_kernel: BLOCK: 16'")


def test_compare_says_what_is_missing_and_where_it_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    write_json(a, Results({"device": "H100"}, [row(us=2.0), row("nms", us=1)]))
    write_json(b, Results({"device": "H200"}, [row(us=1.0)]))
    assert compare.main([str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "device: H100 and H200" in out
    assert "us x 0.500" in out
    assert f"only in {a}:\n  nms" in out
    assert f"only in {b}" not in out


def test_compare_refuses_what_is_no_file_of_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    write_json(good, Results({}, []))
    for text in ("{", "[]", '{"rows": []}', '{"environment": {}, "rows": [{"case": 1}]}'):
        bad.write_text(text)
        assert compare.main([str(good), str(bad)]) == 2
        assert "bad.json" in capsys.readouterr().err
    assert compare.main([str(good), str(tmp_path / "none.json")]) == 2
    assert compare.main([str(good)]) == 2


def test_results_are_made_again_when_anything_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "cache")
    versions = {"torch": "1"}
    monkeypatch.setattr(cache, "_version", versions.__getitem__)
    (tmp_path / "source").mkdir()
    one, two = tmp_path / "source" / "one.py", tmp_path / "two.py"
    one.write_text("a")
    two.write_text("b")
    made = 0

    def make() -> dict[str, int]:
        nonlocal made
        made += 1
        return {"made": made}

    def ask(name: str = "x", fresh: bool = False) -> tuple[dict[str, int], bool]:
        cache._digest.cache_clear()  # as another process
        figures, remembered = cache.cached(name, [one.parent, two], ["torch"], make, fresh)
        assert isinstance(figures, dict)
        return figures, remembered

    assert ask() == ({"made": 1}, False)
    assert ask() == ({"made": 1}, True)
    assert ask("y") == ({"made": 2}, False)
    one.write_text("c")
    assert ask() == ({"made": 3}, False)
    two.write_text("d")
    assert ask() == ({"made": 4}, False)
    (tmp_path / "source" / "new.h").write_text("")
    assert ask() == ({"made": 5}, False)
    versions["torch"] = "2"
    assert ask() == ({"made": 6}, False)
    assert ask(fresh=True) == ({"made": 7}, False)
    assert ask() == ({"made": 7}, True)
    one.write_text("a")
    (tmp_path / "source" / "new.h").unlink()
    two.write_text("b")
    versions["torch"] = "1"
    assert ask() == ({"made": 1}, True)
    kept = sorted((tmp_path / "cache" / "results").iterdir())
    assert len(kept) == 6
    assert all(json.loads(file.read_text())["result"] for file in kept)
    one.write_text("edited while this process runs")
    figures, remembered = cache.cached("x", [one.parent, two], ["torch"], make)
    assert (figures, remembered) == ({"made": 1}, True)
    with pytest.raises(ZeroDivisionError):
        cache.cached("z", [two], [], lambda: 1 // 0)
    assert sorted((tmp_path / "cache" / "results").iterdir()) == kept


def test_what_is_not_to_be_kept_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is an earlier result left, where another one was made since."""
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)

    def ask(result: float, fresh: bool = False) -> tuple[float, bool]:
        return cache.cached("x", [], [], lambda: result, fresh, keep=lambda made: made < 2)

    assert (ask(2), ask(1), ask(2)) == ((2, False), (1, False), (1, True))
    assert (ask(3, fresh=True), ask(2)) == ((3, False), (2, False))

"""Counts by hand, and the table that shows them."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

from rich.console import Console

from mrcnn.data import Counts, InstanceDataset, count_objects, nuclei_dataset, open_dataset, summarize
from mrcnn.data.problems import Problem
from mrcnn.data.records import Annotation, Contents, ImageRecord


def annotation(label: int, area: float, *, crowd: bool = False) -> Annotation:
    return Annotation(1, label, (0, 0, 1, 1), area, [], crowd)


def dataset(*images: list[Annotation], classes: int = 2, problems: int = 0) -> InstanceDataset:
    records = [ImageRecord(n, "", Path("none"), 10 + n, 20, tuple(annotations)) for n, annotations in enumerate(images)]
    names = ["background", *(f"class{n}" for n in range(1, classes + 1))]
    bad = [Problem("kind", "file", "message", "remedy")] * problems
    return InstanceDataset(Contents(records, names, list(range(classes + 1)), bad), name="made up")


def text(data: InstanceDataset) -> str:
    output = StringIO()
    Console(width=120, file=output).print(summarize(data))
    return output.getvalue()


EXAMPLE = (
    [annotation(1, 1023.9), annotation(1, 1024), annotation(2, 9215)],
    [annotation(1, 9216), annotation(1, 50_000, crowd=True)],
    [],
    [annotation(2, 5, crowd=True)],
)


def test_counts() -> None:
    data = dataset(*EXAMPLE)
    assert count_objects(data) == Counts(images=2, objects=4, small=1, medium=2, large=1, crowd=2)
    assert count_objects(data, 1) == Counts(images=2, objects=3, small=1, medium=1, large=1, crowd=1)
    assert count_objects(data, 2) == Counts(images=1, objects=1, small=0, medium=1, large=0, crowd=1)


def rows(table: str) -> dict[str, list[int]]:
    split = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]
    return {cells[0]: [int(cell) for cell in cells[1:]] for cells in split}


def test_table() -> None:
    table = text(dataset(*EXAMPLE, problems=3))
    assert rows(table) == {
        "class1": [2, 3, 1, 1, 1, 1],
        "class2": [1, 1, 0, 1, 0, 1],
        "all": [2, 4, 1, 2, 1, 2],
    }
    assert "made up: 4 images, 20 × 10–13 pixels" in table
    assert "images without objects: 2; bad items left out: 3" in table


def test_many_classes_share_a_row() -> None:
    data = dataset([annotation(label, 5) for label in range(1, 41)], [annotation(40, 5)], classes=41)
    table = rows(text(data))
    assert len(table) == 25 + 2
    assert next(iter(table)) == "class40"
    assert table["16 others"] == [1, 15, 15, 0, 0, 0]
    assert table["all"] == [2, 41, 41, 0, 0, 0]


def test_real(test_data: Callable[[str], Path]) -> None:
    data = open_dataset(test_data("dsb-mini/val.json"))
    assert rows(text(data))["nucleus"][:2] == [30, 788]
    assert "val.json: 30 images, 256 × 256 pixels" in text(data)
    assert "nuclei (left): 1 image, 256 × 512 pixels" in text(nuclei_dataset("left"))

"""What is in a data set, in one table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from mrcnn.data.dataset import InstanceDataset
from mrcnn.data.records import Annotation

# COCO's borders between small, medium and large objects, in pixels of mask area.
SMALL, MEDIUM = 32**2, 96**2
_MAX_CLASSES = 25


@dataclass(frozen=True)
class Counts:
    """Objects of one class, or of all; crowd regions are counted apart."""

    images: int
    objects: int
    small: int
    medium: int
    large: int
    crowd: int


def count_objects(dataset: InstanceDataset, label: int | None = None) -> Counts:
    """Counts the objects of one label, or of all labels, and the images that hold any."""
    per_image = [[a for a in record.annotations if label is None or a.label == label] for record in dataset.records]
    return _count(per_image)


def summarize(dataset: InstanceDataset) -> Table:
    """A table of images, objects by class and size, crowd regions, empty images and items left out.

    Classes come by number of objects; beyond the first 25 they share one row.
    """
    totals = count_objects(dataset)
    empty = len(dataset) - totals.images
    images = "1 image" if len(dataset) == 1 else f"{len(dataset)} images"
    left_out = len(dataset.problems)
    table = Table(
        title=f"{dataset.name}: {images}, {_extent(dataset.image_sizes)}",
        caption=f"images without objects: {empty}; bad items left out: {left_out}\n"
        "small: mask under 32² pixels; large: 96² and more",
        show_footer=True,
    )
    table.add_column("class", footer="all")
    columns = ("images", "objects", "small", "medium", "large", "crowd")
    for column in columns:
        table.add_column(column, justify="right", footer=str(getattr(totals, column)))
    by_label = _by_label(dataset)
    ranked = sorted(range(1, len(dataset.class_names)), key=lambda label: -sum(map(len, by_label[label])))
    rows = [(dataset.class_names[label], by_label[label]) for label in ranked[:_MAX_CLASSES]]
    others = set(ranked[_MAX_CLASSES:])
    if others:
        together = [[a for a in record.annotations if a.label in others] for record in dataset.records]
        rows.append((f"{len(others)} others", together))
    for name, per_image in rows:
        counts = _count(per_image)
        table.add_row(name, *(str(getattr(counts, column)) for column in columns))
    return table


def _by_label(dataset: InstanceDataset) -> dict[int, list[list[Annotation]]]:
    """The annotations of each label, one list per image that has any."""
    grouped: dict[int, list[list[Annotation]]] = defaultdict(list)
    for record in dataset.records:
        own: dict[int, list[Annotation]] = defaultdict(list)
        for annotation in record.annotations:
            own[annotation.label].append(annotation)
        for label, group in own.items():
            grouped[label].append(group)
    return grouped


def _count(per_image: Sequence[Sequence[Annotation]]) -> Counts:
    objects = [[a for a in annotations if not a.is_crowd] for annotations in per_image]
    areas = [a.area for image in objects for a in image]
    return Counts(
        images=sum(bool(image) for image in objects),
        objects=len(areas),
        small=sum(area < SMALL for area in areas),
        medium=sum(SMALL <= area < MEDIUM for area in areas),
        large=sum(area >= MEDIUM for area in areas),
        crowd=sum(a.is_crowd for annotations in per_image for a in annotations),
    )


def _extent(sizes: Sequence[tuple[int, int]]) -> str:
    """Widths × heights as a range, or as one size."""
    ranges = []
    for axis in (1, 0):
        values = [size[axis] for size in sizes]
        low, high = min(values, default=0), max(values, default=0)
        ranges.append(str(low) if low == high else f"{low}–{high}")
    return " × ".join(ranges) + " pixels"

"""Reads COCO-format JSON, and names every item in it that cannot be used.

Category ids may have gaps and any order: labels are numbered 1..K by ascending category id, as torchvision's
and Detectron2's readers do. A missing "area", "iscrowd" or "bbox" is filled in (from the mask; 0; from the
mask).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mrcnn.data.annotation import check_annotation
from mrcnn.data.images import ImageError, check_image
from mrcnn.data.locate import find_image_folder
from mrcnn.data.problems import DatasetError, InvalidItem, Problem
from mrcnn.data.records import Annotation, Contents, ImageRecord

Item = Mapping[str, Any]


def read_coco(path: Path, images: Path | None = None) -> Contents:
    """Reads and checks a COCO JSON file and every image that it names.

    Args:
        path: the JSON file.
        images: folder that the file names start from; found beside the JSON if not given.

    Raises:
        DatasetError: the file is not COCO JSON, or no image folder can be found.
    """
    document = _load(path)
    problems: list[Problem] = []
    categories = _read_categories(document["categories"], path, problems)
    category_ids = [0, *sorted(categories)]
    labels = {category: label for label, category in enumerate(category_ids) if label > 0}

    items = _index_images(document["images"], path, problems)
    folder = images if images is not None else find_image_folder(path, [i["file_name"] for i in items.values()])
    sizes = _check_images(items, folder, problems)
    grouped = _read_annotations(document["annotations"], path, items, sizes, labels, problems)

    records = [
        ImageRecord(
            image_id=image_id,
            file_name=items[image_id]["file_name"],
            pixels=folder / items[image_id]["file_name"],
            height=height,
            width=width,
            annotations=tuple(grouped[image_id]),
        )
        for image_id, (height, width) in sizes.items()
    ]
    names = ["background", *(categories[category] for category in category_ids[1:])]
    return Contents(records, names, category_ids, problems)


def _load(path: Path) -> dict[str, Any]:
    def refuse(kind: str, message: str, remedy: str) -> DatasetError:
        return DatasetError(path, [Problem(kind, str(path), message, remedy)], skippable=False)

    try:
        # utf-8-sig: some Windows tools begin the file with a byte order mark.
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise refuse("json-missing", "there is no such file", "Check the path") from None
    except (ValueError, RecursionError) as error:
        raise refuse("json-invalid", f"this is not JSON ({error})", "Export the annotations again") from error
    except OSError as error:
        raise refuse("json-unreadable", f"it cannot be read ({error})", "Check the file's rights") from error
    if isinstance(document, list):
        raise refuse(
            "json-not-coco",
            "this is a list, as detection results are, not a COCO data set",
            "Give the file with the ground truth",
        )
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(document, dict) or not isinstance(document.get(key), list)]
    if missing:
        raise refuse(
            "json-not-coco",
            f"this is not a COCO data set: no list {', '.join(repr(key) for key in missing)}",
            "Export it in COCO format, with images, annotations and categories",
        )
    return dict(document)


def _read_categories(items: list[Any], path: Path, problems: list[Problem]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for index, item in enumerate(items):
        with _reported(problems, path):
            category = _id(item, "id", f"category number {index}")
            if category in categories:
                raise InvalidItem(
                    "category-duplicate",
                    f"the category id {category} is given twice",
                    "Number them differently",
                )
            categories[category] = str(item.get("name", category))
    return categories


def _index_images(items: list[Any], path: Path, problems: list[Problem]) -> dict[int, Item]:
    """The image entries that name a file, by id."""
    indexed: dict[int, Item] = {}
    for index, item in enumerate(items):
        image_id = item.get("id") if isinstance(item, dict) and type(item.get("id")) is int else None
        with _reported(problems, path, image_id):
            image_id = _id(item, "id", f"image number {index}")
            if not isinstance(item.get("file_name"), str) or not item["file_name"]:
                raise InvalidItem("image-entry", 'it has no "file_name"', "Name its file")
            if image_id in indexed:
                raise InvalidItem(
                    "image-duplicate",
                    f"the id is given twice, for {indexed[image_id]['file_name']} and {item['file_name']}",
                    "Number the images differently",
                )
            # Backslashes come from tools on Windows, and are no part of names there.
            indexed[image_id] = {**item, "file_name": item["file_name"].replace("\\", "/")}
    return indexed


def _check_images(items: Mapping[int, Item], folder: Path, problems: list[Problem]) -> dict[int, tuple[int, int]]:
    """(height, width) of the images that can be read and have the size that the JSON gives, by id."""

    def check(item: Item) -> tuple[int, int] | ImageError:
        height, width = item.get("height"), item.get("width")
        size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        try:
            return check_image(folder / item["file_name"], size)
        except ImageError as error:
            return error

    sizes: dict[int, tuple[int, int]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the interpreter's lock
        for image_id, outcome in zip(items, pool.map(check, items.values()), strict=True):
            if isinstance(outcome, ImageError):
                problems.append(outcome.located(str(folder / items[image_id]["file_name"]), image_id))
            else:
                sizes[image_id] = outcome
    return sizes


def _read_annotations(
    entries: list[Any],
    path: Path,
    items: Mapping[int, Item],
    sizes: Mapping[int, tuple[int, int]],
    labels: Mapping[int, int],
    problems: list[Problem],
) -> dict[int, list[Annotation]]:
    """The good annotations of each good image; those of a bad image go with it."""
    grouped: dict[int, list[Annotation]] = {image_id: [] for image_id in sizes}
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            entry = {}
        image_id, annotation_id = entry.get("image_id"), entry.get("id")
        with _reported(
            problems,
            path,
            image_id if type(image_id) is int else None,
            annotation_id if type(annotation_id) is int else None,
        ):
            annotation_id = _id(entry, "id", f"annotation number {index}")
            if annotation_id in seen:
                raise InvalidItem("annotation-duplicate", "the annotation id is given twice", "Number them differently")
            seen.add(annotation_id)
            image_id = _id(entry, "image_id", f"annotation number {index}")
            if image_id not in items:
                raise InvalidItem("annotation-image", "no image has this id", "Add the image, or remove the annotation")
            if image_id in sizes:
                grouped[image_id].append(check_annotation(entry, sizes[image_id], labels))
    return grouped


def _id(item: object, key: str, place: str) -> int:
    value = item.get(key) if isinstance(item, dict) else None
    if type(value) is not int:
        kind = f"{place.split()[0]}-entry"
        raise InvalidItem(kind, f'{place} has no integer "{key}" but {value!r}', "Give it one")
    return value


@contextmanager
def _reported(
    problems: list[Problem], path: Path, image_id: int | None = None, annotation_id: int | None = None
) -> Iterator[None]:
    """Notes a failed check of one item, and goes on after it."""
    try:
        yield
    except InvalidItem as error:
        problems.append(error.located(str(path), image_id, annotation_id))

"""One annotation of a COCO document, and all that can be wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pycocotools import mask as coco_mask

from mrcnn.data.masks import check_segmentation, is_number, to_rle
from mrcnn.data.problems import InvalidItem
from mrcnn.data.records import Annotation


def check_annotation(entry: Mapping[str, Any], size: tuple[int, int], labels: Mapping[int, int]) -> Annotation:
    """Reads one annotation.

    Args:
        entry: what the JSON holds, with a good "id".
        size: (height, width) of its image.
        labels: contiguous label of each category id.

    Raises:
        InvalidItem: its category, box or segmentation cannot be used, or they contradict each other.
    """
    category = entry.get("category_id")
    if type(category) is not int or category not in labels:
        raise InvalidItem(
            "annotation-category",
            f"the category id {category!r} is not among the categories",
            "Add the category, or correct the id",
        )
    if entry.get("bbox") is not None:
        _check_box(entry["bbox"], size)
    segmentation = check_segmentation(entry.get("segmentation"), *size)
    rle = to_rle(segmentation, *size)
    mask_area, mask_box = int(coco_mask.area(rle)), coco_mask.toBbox(rle).tolist()
    if mask_area == 0:
        raise InvalidItem("mask-empty", "the mask covers no pixel of the image", "Correct or remove the annotation")
    bbox = tuple(map(float, entry["bbox"])) if entry.get("bbox") is not None else tuple(mask_box)
    if not coco_mask.iou([list(bbox)], [mask_box], [0])[0, 0] > 0:
        raise InvalidItem(
            "box-mask",
            f"the box {list(bbox)} and the mask, whose box is {mask_box}, do not overlap",
            "Give both in pixels of the image, the box as x, y, width, height",
        )
    area = entry["area"] if is_number(entry.get("area")) else 0
    return Annotation(
        annotation_id=entry["id"],
        label=labels[category],
        bbox=(bbox[0], bbox[1], bbox[2], bbox[3]),
        area=float(area) if area > 0 else float(mask_area),
        segmentation=segmentation,
        is_crowd=entry.get("iscrowd") in (1, "1"),
    )


def _check_box(box: object, size: tuple[int, int]) -> None:
    remedy = "Correct or remove the annotation"
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
        raise InvalidItem("box-invalid", f"the box {box!r} is not four finite numbers", remedy)
    x, y, width, height = box
    if width <= 0 or height <= 0:
        raise InvalidItem("box-empty", f"the box {box} (x, y, width, height) has no area", remedy)
    if min(x + width, size[1]) <= max(x, 0) or min(y + height, size[0]) <= max(y, 0):
        raise InvalidItem(
            "box-empty",
            f"the box {box} (x, y, width, height) is outside the image of {size[1]} × {size[0]} pixels",
            remedy,
        )

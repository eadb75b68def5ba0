"""Segmentations become pycocotools' masks of them, and bad ones are refused before its C code."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mrcnn.data.masks import check_segmentation, decode_run_lengths, label_map_rles, to_masks
from mrcnn.data.problems import InvalidItem

SQUARE = [2, 1, 6, 1, 6, 5, 2, 5]  # columns 2 to 5, rows 1 to 4


def mask_of(segmentation: object, height: int = 8, width: int = 10) -> np.ndarray:
    checked = check_segmentation(segmentation, height, width)
    return to_masks([checked], height, width)[0]


def square(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((8, 10), dtype=np.uint8)
    mask[rows, columns] = 1
    return mask


def test_polygon() -> None:
    np.testing.assert_array_equal(mask_of([SQUARE]), square(slice(1, 5), slice(2, 6)))


def test_parts_are_united() -> None:
    expected = square(slice(1, 5), slice(2, 6)) | square(slice(6, 8), slice(0, 3))
    np.testing.assert_array_equal(mask_of([SQUARE, [0, 6, 3, 6, 3, 8, 0, 8]]), expected)


def test_uncompressed_rle_runs_down_columns() -> None:
    # 8 pixels of column 0 and 2 of column 1 are background, then 3 are the object.
    rle = {"size": [8, 10], "counts": [10, 3, 67]}
    np.testing.assert_array_equal(mask_of(rle), square(slice(2, 5), slice(1, 2)))


@settings(deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1)))
def test_compressed_rle(mask: np.ndarray) -> None:
    encoded = coco_mask.encode(np.asfortranarray(mask))
    rle = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    np.testing.assert_array_equal(mask_of(rle, *mask.shape), mask)
    column_major = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(column_major, prepend=0, append=2))
    assert decode_run_lengths(rle["counts"]) == np.diff(edges, prepend=0).tolist()


def test_long_runs() -> None:
    mask = np.zeros((700, 900), dtype=np.uint8)
    mask[300:650, 20:870] = 1
    mask[5, 5] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    rle = {"size": [700, 900], "counts": encoded["counts"].decode()}
    np.testing.assert_array_equal(mask_of(rle, 700, 900), mask)


def test_no_masks() -> None:
    assert to_masks([], 8, 10).shape == (0, 8, 10)


@pytest.mark.parametrize(
    ("segmentation", "kind", "message"),
    [
        (None, "mask-missing", "no segmentation"),
        ([], "mask-missing", "no segmentation"),
        ("text", "mask-missing", "no segmentation"),
        ([[1, 1, 5, 1, 5]], "polygon-invalid", r"odd number of coordinates \(5\)"),
        ([SQUARE, [1, 1, 5, 5]], "polygon-invalid", "4 coordinates, fewer than the 6"),
        (SQUARE, "polygon-invalid", "not a list of finite numbers"),
        ([[1, 1, 5, float("nan"), 5, 5]], "polygon-invalid", "finite"),
        ([[1, 1, 5, float("inf"), 5, 5]], "polygon-invalid", "finite"),
        ([[1, 1, 5, 10**400, 5, 5]], "polygon-invalid", "finite"),
        ([[1, 1, 5, "3", 5, 5]], "polygon-invalid", "finite"),
        ([[1, 1, 5e9, 1, 5, 5]], "polygon-invalid", "far outside"),
        ([[1, -9, 5, 1, 5, 5]], "polygon-invalid", "far outside"),
        ({"size": [10, 8], "counts": [80]}, "rle-invalid", r"\[10, 8\], the image is \[8, 10\]"),
        ({"counts": [80]}, "rle-invalid", "None"),
        ({"size": [8, 10], "counts": [10, 3, 68]}, "rle-invalid", "covers 81 pixels.* = 80"),
        ({"size": [8, 10], "counts": [90, -10]}, "rle-invalid", "covers 80 pixels"),
        ({"size": [8, 10], "counts": [10, 3.5, 66.5]}, "rle-invalid", "neither"),
        ({"size": [8, 10]}, "rle-invalid", "neither"),
        ({"size": [8, 10], "counts": "~~~"}, "rle-invalid", "unexpected character '~'"),
        ({"size": [8, 10], "counts": "P"}, "rle-invalid", "ends within a number"),
        ({"size": [8, 10], "counts": "5"}, "rle-invalid", "covers 5 pixels"),
    ],
)
def test_refused(segmentation: object, kind: str, message: str) -> None:
    with pytest.raises(InvalidItem, match=message) as caught:
        check_segmentation(segmentation, 8, 10)
    assert caught.value.kind == kind


@settings(deadline=None)
@given(arrays(np.int64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 4)))
def test_label_map(labels: np.ndarray) -> None:
    rles = label_map_rles(labels)
    assert list(rles) == sorted(set(labels[labels > 0].tolist()))
    for label, rle in rles.items():
        np.testing.assert_array_equal(coco_mask.decode(rle), labels == label)


@pytest.mark.parametrize("name", ["tiny-coco/annotations/instances_train2017.json", "dsb-mini/val.json"])
def test_equal_to_pycocotools(test_data: Callable[[str], Path], name: str) -> None:
    document = json.loads(test_data(name).read_text())
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    for annotation in document["annotations"]:
        image = coco.imgs[annotation["image_id"]]
        mask = mask_of(annotation["segmentation"], image["height"], image["width"])
        np.testing.assert_array_equal(mask, coco.annToMask(annotation))

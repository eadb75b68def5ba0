"""COCO segmentations (polygons, RLE) to pixels and back, with the checks that pycocotools leaves out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from mrcnn.data.problems import InvalidItem

UInt8Array = npt.NDArray[np.uint8]
Polygons = list[list[float]]  # each part x1, y1, x2, y2, ... in pixels
RLE = dict[str, Any]  # {"size": [height, width], "counts": compressed string or list of run lengths}
Segmentation = Polygons | RLE

_LARGEST = sys.float_info.max


def check_segmentation(segmentation: object, height: int, width: int) -> Segmentation:
    """Gives the segmentation back if it can be turned into a mask of height × width.

    Raises:
        InvalidItem: it cannot; the error says why.
    """
    if isinstance(segmentation, list) and segmentation:
        return [_check_polygon(part, height, width) for part in segmentation]
    if isinstance(segmentation, dict):
        return _check_rle(segmentation, height, width)
    raise InvalidItem(
        "mask-missing",
        "there is no segmentation",
        "Give it polygons or RLE; boxes alone do not train masks",
    )


def to_rle(segmentation: Segmentation, height: int, width: int) -> RLE:
    """Compressed RLE ("counts" as bytes) of a checked segmentation; the parts of polygons are united."""
    if isinstance(segmentation, list):
        rle: RLE = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        return rle
    if isinstance(segmentation["counts"], list):
        compressed: RLE = coco_mask.frPyObjects(segmentation, height, width)
        return compressed
    return segmentation


def to_masks(segmentations: Sequence[Segmentation], height: int, width: int) -> UInt8Array:
    """The masks [len(segmentations), height, width] of checked segmentations, 0 or 1."""
    masks = np.empty((len(segmentations), height, width), dtype=np.uint8)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        mask[:] = coco_mask.decode(to_rle(segmentation, height, width))
    return masks


def label_map_rles(label_map: npt.NDArray[np.int64]) -> dict[int, RLE]:
    """The RLE ("counts" as string) of each positive value of a label map [H, W], by ascending value."""
    height, width = label_map.shape
    values = label_map.ravel(order="F")  # RLE runs down the columns
    positions = np.flatnonzero(values > 0)
    # A stable sort keeps the positions of one label ascending.
    positions = positions[np.argsort(values[positions], kind="stable")]
    labels, first = np.unique(values[positions], return_index=True)
    ends = [*first[1:], len(positions)]
    return {
        int(label): _rle_from_positions(positions[start:end], height, width)
        for label, start, end in zip(labels, first, ends[: len(labels)], strict=True)
    }


def _rle_from_positions(positions: npt.NDArray[np.int64], height: int, width: int) -> RLE:
    """The RLE of the pixels at ascending column-major positions."""
    breaks = np.flatnonzero(np.diff(positions) > 1)
    starts = positions[np.concatenate(([0], breaks + 1))]
    ends = positions[np.concatenate((breaks, [-1]))] + 1
    edges = np.concatenate(([0], np.stack((starts, ends), axis=1).ravel(), [height * width]))
    rle: RLE = coco_mask.frPyObjects({"size": [height, width], "counts": np.diff(edges).tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def _check_polygon(part: object, height: int, width: int) -> list[float]:
    remedy = "Correct or remove this polygon"
    if not isinstance(part, list) or not all(is_number(value) for value in part):
        raise InvalidItem("polygon-invalid", "a polygon is not a list of finite numbers", remedy)
    if len(part) % 2:
        raise InvalidItem("polygon-invalid", f"a polygon has an odd number of coordinates ({len(part)})", remedy)
    if len(part) < 6:
        raise InvalidItem(
            "polygon-invalid",
            f"a polygon has {len(part)} coordinates, fewer than the 6 of a triangle",
            remedy,
        )
    # Rasterising walks every edge, so a wild coordinate would cost unbounded time and memory.
    for values, extent in ((part[0::2], width), (part[1::2], height)):
        if min(values) < -extent or max(values) > 2 * extent:
            raise InvalidItem(
                "polygon-invalid",
                f"a polygon reaches from {min(values):g} to {max(values):g}, far outside the {extent} pixels",
                "Give coordinates in pixels of the image",
            )
    return part


def _check_rle(rle: RLE, height: int, width: int) -> RLE:
    """pycocotools writes past its buffer when the runs exceed the size, so they are summed here first."""
    if rle.get("size") != [height, width]:
        raise InvalidItem(
            "rle-invalid",
            f"the RLE is for [height, width] = {rle.get('size')}, the image is {[height, width]}",
            "Encode the mask at the size of the image",
        )
    counts = rle.get("counts")
    remedy = "Encode the mask again"
    if isinstance(counts, str):
        try:
            runs = decode_run_lengths(counts)
        except ValueError as error:
            raise InvalidItem("rle-invalid", f"the RLE string is damaged: {error}", remedy) from None
    elif isinstance(counts, list) and all(type(run) is int for run in counts):
        runs = counts
    else:
        raise InvalidItem("rle-invalid", 'the "counts" of the RLE are neither a string nor a list of integers', remedy)
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise InvalidItem(
            "rle-invalid",
            f"the RLE covers {sum(runs)} pixels, the image has {height} × {width} = {height * width}",
            "Encode the mask at the size of the image",
        )
    return rle


def decode_run_lengths(counts: str) -> list[int]:
    """The run lengths in a compressed RLE string.

    Each character holds 5 bits of a signed number, lowest first, and a bit that says whether more follow;
    from the fourth number on, the difference to the number two places before is stored (`rleToString` of the
    COCO API).

    Raises:
        ValueError: the string holds other characters, or ends within a number.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"unexpected character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        runs.append(value)
        value = shift = 0
    if shift:
        raise ValueError("it ends within a number")
    return runs


def is_number(value: object) -> bool:
    """Whether this is a number as JSON gives one, and finite also as a float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST

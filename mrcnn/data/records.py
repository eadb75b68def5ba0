"""What was read from a data set, before any pixel is: the one form that all sources are brought into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mrcnn.data.images import UInt8Array
from mrcnn.data.masks import Segmentation
from mrcnn.data.problems import Problem


@dataclass(frozen=True)
class Annotation:
    """One object, or one crowd region.

    Attributes:
        annotation_id: as in the source.
        label: contiguous class, 1 or higher.
        bbox: x, y, width, height in pixels, as annotated.
        area: pixels of the mask, as annotated (COCO sorts objects into small, medium and large by it).
        segmentation: checked polygons or RLE.
        is_crowd: a region of many objects that is neither trained on nor counted against detections.
    """

    annotation_id: int
    label: int
    bbox: tuple[float, float, float, float]
    area: float
    segmentation: Segmentation
    is_crowd: bool


@dataclass(frozen=True)
class ImageRecord:
    """One image and what is annotated in it.

    Attributes:
        image_id: as in the source.
        file_name: as in the source.
        pixels: the file, or the picture itself, [height, width, 3].
        height: in pixels, after EXIF orientation where the annotations refer to the upright picture.
        width: likewise.
        annotations: in the order of the source; may be empty.
    """

    image_id: int
    file_name: str
    pixels: Path | UInt8Array
    height: int
    width: int
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True)
class Contents:
    """All that was read from one source.

    Attributes:
        records: the good images with their good annotations.
        class_names: index 0 is "background".
        category_ids: the source's category id of each contiguous label; index 0 is 0 and means nothing.
        problems: one for each item that is not in `records`.
    """

    records: list[ImageRecord]
    class_names: list[str]
    category_ids: list[int]
    problems: list[Problem]

"""Reads a folder of images with label maps: a pixel holds the number of its object, or 0.

Accepted layouts, DIR being the folder given:

    DIR/a.png  DIR/a_mask.png                     (also _masks, _label, _labels)
    DIR/a.jpg  DIR/masks/a.png                    (also labels/)
    DIR/images/a.png  DIR/masks/a.png             (also labels/)
    DIR/a.png, with the folder of the images given apart

Label maps are PNG or TIFF of 1 channel and up to 32 bits; the indices of a palette are labels. All objects
are of one class, "object". Images are numbered from 1 by name, annotations from 1 in the order of images and
labels.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from mrcnn.data.images import check_image, list_images, open_image
from mrcnn.data.masks import RLE, label_map_rles
from mrcnn.data.problems import DatasetError, InvalidItem, Problem
from mrcnn.data.records import Annotation, Contents, ImageRecord

_FOLDERS = ("masks", "labels")
_ENDINGS = ("_mask", "_masks", "_label", "_labels")
_SUFFIXES = (".png", ".tif", ".tiff")


def read_label_maps(folder: Path, images: Path | None = None) -> Contents:
    """Reads and checks images and their label maps, in any of the layouts above.

    Args:
        folder: where the label maps are, or both.
        images: where the images are, if apart.

    Raises:
        DatasetError: there is no image with a label map.
    """
    pairs = _pairs(folder, images)
    if not any(label_map is not None for _, label_map in pairs):
        raise DatasetError(
            folder,
            [
                Problem(
                    "source-unknown",
                    str(folder),
                    "there is neither a COCO JSON file nor an image with a label map",
                    "Give a JSON file, or lay label maps out as a.png with a_mask.png, or as masks/a.png",
                )
            ],
            skippable=False,
        )

    records: list[ImageRecord] = []
    problems: list[Problem] = []
    annotation_id = 1
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for image_id, ((image, _), outcome) in enumerate(zip(pairs, pool.map(_read_pair, pairs), strict=True), start=1):
            if isinstance(outcome, Problem):
                problems.append(outcome)
                continue
            (height, width), rles = outcome
            annotations = label_map_annotations(rles, annotation_id)
            records.append(ImageRecord(image_id, image.name, image, height, width, annotations))
            annotation_id += len(annotations)
    return Contents(records, ["background", "object"], [0, 1], problems)


def read_label_map(path: Path) -> npt.NDArray[np.int64]:
    """Reads a label map as [H, W].

    Raises:
        ImageError: the file is missing or damaged.
        InvalidItem: it is not a map of labels.
    """
    with open_image(path) as image:
        image.load()
        mode = image.mode
        values = np.asarray(image)
    if values.ndim != 2 or values.dtype.kind not in "iub":
        raise InvalidItem(
            "labels-invalid",
            f"a label map has one channel of integers, this picture is {mode}",
            "Save it as a grey PNG of 8 or 16 bits, the value of a pixel being the number of its object",
        )
    binary = values.dtype.kind == "b" or (values.dtype == np.uint8 and set(np.unique(values)) in ({0, 255}, {255}))
    if binary:
        raise InvalidItem(
            "labels-invalid",
            "the map tells foreground from background only, not one object from the next",
            "Give every object a number of its own (for example with skimage.measure.label)",
        )
    return values.astype(np.int64)


def label_map_annotations(rles: dict[int, RLE], first_id: int = 1) -> tuple[Annotation, ...]:
    """One annotation of class 1 for each RLE, numbered from `first_id`."""
    return tuple(
        Annotation(
            annotation_id=annotation_id,
            label=1,
            bbox=tuple(coco_mask.toBbox(rle).tolist()),
            area=float(coco_mask.area(rle)),
            segmentation=rle,
            is_crowd=False,
        )
        for annotation_id, rle in enumerate(rles.values(), start=first_id)
    )


def _read_pair(pair: tuple[Path, Path | None]) -> tuple[tuple[int, int], dict[int, RLE]] | Problem:
    image, label_map = pair
    place = image if label_map is None else label_map
    try:
        if label_map is None:
            raise InvalidItem(
                "labels-missing",
                "the image has no label map",
                f"Add {image.stem}_mask.png or masks/{image.stem}.png (all 0 if there is no object), "
                "or remove the image",
            )
        labels = read_label_map(label_map)
        place = image
        size = check_image(image, (labels.shape[0], labels.shape[1]))
    except InvalidItem as error:
        return error.located(str(place))
    return size, label_map_rles(labels)


def _pairs(folder: Path, images: Path | None) -> list[tuple[Path, Path | None]]:
    if images is not None:
        image_folder, map_folder = images, folder
    else:
        image_folder = folder / "images" if (folder / "images").is_dir() else folder
        map_folder = next((folder / name for name in _FOLDERS if (folder / name).is_dir()), folder)
    apart = image_folder.resolve() != map_folder.resolve()
    endings = ("", *_ENDINGS) if apart else _ENDINGS
    files = list_images(image_folder)
    if not apart:
        stems = {path.stem for path in files}
        files = [path for path in files if not _is_label_map(path.stem, stems)]
    return [(path, _find_label_map(map_folder, path.stem, endings)) for path in files]


def _find_label_map(folder: Path, stem: str, endings: tuple[str, ...]) -> Path | None:
    candidates = (folder / f"{stem}{ending}{suffix}" for ending in endings for suffix in _SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _is_label_map(stem: str, stems: set[str]) -> bool:
    return any(stem.endswith(ending) and stem.removesuffix(ending) in stems for ending in _ENDINGS)

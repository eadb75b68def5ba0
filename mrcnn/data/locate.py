"""Finds annotation files and image folders where people put them, so that a path is all one has to give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mrcnn.data.problems import DatasetError, Problem

# Enough names to tell the right folder from one that shares a few.
_MAX_PROBED = 64


def find_annotation_file(folder: Path) -> Path | None:
    """The JSON file of a data set folder: in itself or in its folder annotations/; None if there is none.

    Of several, the only one named instances_*.json is taken, beside which COCO has captions and keypoints.

    Raises:
        DatasetError: there are several.
    """
    found = sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")])
    instances = [path for path in found if path.name.startswith("instances_")]
    if len(found) > 1 and len(instances) == 1:
        return instances[0]
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        raise DatasetError(
            folder,
            [Problem("json-ambiguous", str(folder), f"several JSON files: {names}", "Give the path of one")],
            skippable=False,
        )
    return found[0] if found else None


def find_image_folder(annotation_file: Path, file_names: Sequence[str]) -> Path:
    """The folder that holds most of the files, of those where images usually lie.

    For DIR/annotations/instances_train2017.json: DIR/annotations/instances_train2017,
    DIR/annotations/train2017, DIR/annotations/images, each with DIR in the place of DIR/annotations, each
    inside images/, and the two folders themselves.

    Raises:
        DatasetError: none of them holds any of the files.
    """
    candidates = _candidates(annotation_file)
    if not file_names:
        return candidates[0]
    probed = file_names[:: max(1, len(file_names) // _MAX_PROBED)]
    held = [sum((folder / name).is_file() for name in probed) for folder in candidates]
    if max(held) == 0:
        looked = ", ".join(str(folder) for folder in candidates if folder.is_dir())
        raise DatasetError(
            annotation_file,
            [
                Problem(
                    "images-missing",
                    str(annotation_file),
                    f"none of its images, such as {probed[0]}, is in {looked}",
                    "Give the folder of the images with images=DIR (--images DIR)",
                )
            ],
            skippable=False,
        )
    return candidates[held.index(max(held))]


def _candidates(annotation_file: Path) -> list[Path]:
    stem = annotation_file.stem
    # instances_train2017 and person_keypoints_train2017 both describe train2017.
    subsets = list(dict.fromkeys([stem, stem.split("_", 1)[-1], stem.rsplit("_", 1)[-1], "."]))
    beside = annotation_file.parent
    return list(
        dict.fromkeys(
            base / inner / subset
            for base in (beside, beside.resolve().parent)
            for inner in (".", "images")
            for subset in subsets
        )
    )

"""Opens a data set from whatever path a person gives, and checks all of it first."""

from __future__ import annotations

from pathlib import Path

from mrcnn.data.coco import read_coco
from mrcnn.data.dataset import CACHE_BYTES, InstanceDataset
from mrcnn.data.label_maps import read_label_maps
from mrcnn.data.locate import find_annotation_file
from mrcnn.data.problems import DatasetError, Problem, write_problems
from mrcnn.data.records import Contents


def open_dataset(
    source: Path,
    images: Path | None = None,
    *,
    skip_bad: bool = False,
    skipped_to: Path | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> InstanceDataset:
    """Opens a data set, after checking every image and annotation in it.

    Every picture is decoded once, in threads, so that a truncated one is found before training starts.

    Args:
        source: a COCO JSON file; a folder that holds one, in itself or in annotations/; or a folder of images
            with label maps (layouts: `mrcnn.data.label_maps`).
        images: folder of the images; found beside the annotations if not given (places: `mrcnn.data.locate`).
        skip_bad: leave bad items out instead of refusing the data set.
        skipped_to: file that lists the items left out, one JSON object per line (fields: `Problem`).
        cache_bytes: samples are kept in memory up to this size, which spares small data sets the decoding.

    Raises:
        DatasetError: nothing usable is there, or an item is bad and `skip_bad` is not set; the message names
            each problem with its file, image id and annotation id, and what to do.
        OSError: `skipped_to` cannot be written.
    """
    contents = _read(source, images)
    if contents.problems and not skip_bad:
        raise DatasetError(source, contents.problems, skippable=True)
    if skip_bad and skipped_to is not None:
        write_problems(contents.problems, skipped_to)
    if not any(not a.is_crowd for record in contents.records for a in record.annotations):
        empty = Problem(
            "no-annotation",
            str(source),
            f"no object is annotated in its {len(contents.records)} usable images",
            "Give data with annotated objects",
        )
        raise DatasetError(source, [*contents.problems, empty], skippable=False)
    return InstanceDataset(contents, name=source.resolve().name, cache_bytes=cache_bytes)


def _read(source: Path, images: Path | None) -> Contents:
    for role, folder in (("source", source), ("images", images)):
        if folder is not None and not folder.exists():
            missing = Problem("path-missing", str(folder), "there is no such file or folder", "Check the path")
            raise DatasetError(source, [missing], skippable=False)
        if role == "images" and folder is not None and not folder.is_dir():
            no_folder = Problem("path-missing", str(folder), "this is not a folder", "Give the images' folder")
            raise DatasetError(source, [no_folder], skippable=False)
    if source.is_file():
        return read_coco(source, images)
    annotation_file = find_annotation_file(source)
    if annotation_file is not None:
        return read_coco(annotation_file, images)
    return read_label_maps(source, images)

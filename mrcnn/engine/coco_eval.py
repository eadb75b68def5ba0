"""COCO's evaluation protocol: twelve figures from a ground truth and a list of results.

pycocotools does the matching; this module checks what goes in, so that a mistake in a file is named instead
of surfacing as an index error, and reads the figures out of its precision and recall arrays, because its own
summary is fixed to 100 detections per image.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn.data.masks import check_segmentation, is_number, to_rle
from mrcnn.data.problems import MAX_LISTED, InvalidItem

IouType = Literal["bbox", "segm"]
Figures = dict[str, float]


class ResultsError(ValueError):
    """A ground truth or a results list that cannot be evaluated; the message lists what is wrong with it."""


def figure_names(max_dets: int = 100) -> tuple[str, ...]:
    """Names of the twelve figures, in COCO's order.

    Args:
        max_dets: detections counted per image and category; it names the third recall (`AR100`).

    Returns:
        AP over IoU 0.50 to 0.95, AP at 0.50 and 0.75, AP of small (area under 32² pixels), medium and large
        (over 96²) objects, then average recall with 1, 10 and `max_dets` detections and by object size.
    """
    return (
        *("AP", "AP50", "AP75", "APs", "APm", "APl"),
        *("AR1", "AR10", f"AR{max_dets}", "ARs", "ARm", "ARl"),
    )


def read_json(path: Path) -> Any:
    """Parses a JSON file.

    Raises:
        ResultsError: if the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:  # covers both invalid JSON and invalid UTF-8
        raise ResultsError(f"{path}: is not JSON ({error}).") from error


def coco_figures(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    iou_type: IouType,
    max_dets: int = 100,
) -> Figures:
    """Evaluates results as COCO does.

    Args:
        ground_truth: COCO instance annotations: `images`, `annotations` and `categories`. Not changed.
        results: COCO results: `image_id`, `category_id`, `score` and, by `iou_type`, a `bbox`
            (x, y, width, height) or a `segmentation` (RLE). Not changed. May be empty.
        iou_type: overlap of boxes or of masks. Object sizes are box areas for results in the first case and
            mask areas in the second, whatever else a result holds.
        max_dets: the best-scored detections counted per image and category; more than 10.

    Returns:
        The figures of `figure_names`, each in 0..1, or -1 where the ground truth has no object of that size.

    Raises:
        ResultsError: if the ground truth or the results are not what is described above.
    """
    if max_dets <= 10:
        raise ValueError(f"max_dets is {max_dets} and must be more than 10, the limit of AR10")
    sizes = _check_ground_truth(ground_truth, iou_type)
    _check_results(results, ground_truth, sizes, iou_type)

    truth = _index(ground_truth, [_truth_record(a, i) for i, a in enumerate(ground_truth["annotations"], 1)])
    found = _index(ground_truth, [_result_record(r, i, iou_type) for i, r in enumerate(results, 1)])
    evaluation = COCOeval(truth, found, iou_type)
    evaluation.params.maxDets = [1, 10, max_dets]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()

    precision = evaluation.eval["precision"]  # [10 IoU thresholds, 101 recalls, categories, 4 areas, 3 limits]
    recall = evaluation.eval["recall"]  # [10 IoU thresholds, categories, 4 areas, 3 limits]
    cells = [
        precision[..., 0, 2],
        precision[0, ..., 0, 2],
        precision[5, ..., 0, 2],
        *(precision[..., area, 2] for area in (1, 2, 3)),
        *(recall[..., 0, limit] for limit in (0, 1, 2)),
        *(recall[..., area, 2] for area in (1, 2, 3)),
    ]
    return {name: _mean(cell) for name, cell in zip(figure_names(max_dets), cells, strict=True)}


def _mean(cell: np.ndarray[Any, Any]) -> float:
    """Mean over the entries that exist: -1 marks a category without ground truth."""
    present = cell[cell > -1]
    return float(np.mean(present)) if present.size else -1.0


def _index(ground_truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> Any:
    coco = COCO()
    coco.dataset = {
        "images": ground_truth["images"],
        "categories": ground_truth["categories"],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _truth_record(annotation: Mapping[str, Any], number: int) -> dict[str, Any]:
    # pycocotools reads a match with annotation id 0 as no match, so ids are given anew from 1.
    return {**annotation, "id": number, "iscrowd": annotation.get("iscrowd", 0)}


def _result_record(result: Mapping[str, Any], number: int, iou_type: IouType) -> dict[str, Any]:
    record = {key: result[key] for key in ("image_id", "category_id", "score")}
    record |= {"id": number, "iscrowd": 0}
    if iou_type == "bbox":
        box = result["bbox"]
        return record | {"bbox": box, "area": box[2] * box[3]}
    rle = to_rle(result["segmentation"], *result["segmentation"]["size"])
    return record | {"segmentation": rle, "area": float(rle_tools.area(rle))}


def _check_ground_truth(ground_truth: Mapping[str, Any], iou_type: IouType) -> dict[Any, tuple[int, int]]:
    """Height and width by image id, once the ground truth is known to be sound."""
    keys = ("images", "annotations", "categories")
    if not isinstance(ground_truth, Mapping) or any(not isinstance(ground_truth.get(k), list) for k in keys):
        raise ResultsError(
            "The ground truth is not COCO JSON: it must be an object with the lists "
            "'images', 'annotations' and 'categories'."
        )
    try:
        sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
        categories = {category["id"] for category in ground_truth["categories"]}
    except (KeyError, TypeError) as error:
        raise ResultsError(
            "The ground truth is not COCO JSON: each image needs 'id', 'height' and 'width', "
            f"each category an 'id' (missing: {error})."
        ) from error

    def problems() -> Iterator[str]:
        for position, annotation in enumerate(ground_truth["annotations"]):
            where = f"annotation {position}"
            if not isinstance(annotation, Mapping):
                yield f"{where}: is not an object"
                continue
            where = f"annotation id {annotation.get('id', f'(none, position {position})')}"
            needed = ("image_id", "category_id", "area", "bbox" if iou_type == "bbox" else "segmentation")
            if missing := [key for key in needed if key not in annotation]:
                yield f"{where}: has no {' and no '.join(map(repr, missing))}"
            elif not _is_in(annotation["image_id"], sizes):
                yield f"{where}: its image_id {annotation['image_id']!r} is not in 'images'"
            elif not _is_in(annotation["category_id"], categories):
                yield f"{where}: its category_id {annotation['category_id']!r} is not in 'categories'"
            elif problem := _shape_problem(annotation, sizes[annotation["image_id"]], iou_type):
                yield f"{where}: {problem}"

    _raise_if_any("The ground truth", problems(), "Correct these annotations or remove them.")
    return sizes


def _check_results(
    results: Sequence[Mapping[str, Any]],
    ground_truth: Mapping[str, Any],
    sizes: Mapping[Any, tuple[int, int]],
    iou_type: IouType,
) -> None:
    if not isinstance(results, list | tuple):
        raise ResultsError(
            "The results are not a COCO results list: the file must hold a JSON list of objects with "
            f"'image_id', 'category_id', 'score' and 'bbox' or 'segmentation', not {_kind(results)}."
        )
    categories = {category["id"] for category in ground_truth["categories"]}
    shape = "bbox" if iou_type == "bbox" else "segmentation"

    def problems() -> Iterator[str]:
        for position, result in enumerate(results):
            where = f"result {position}"
            if not isinstance(result, Mapping):
                yield f"{where}: is {_kind(result)} and must be an object"
            elif missing := [k for k in ("image_id", "category_id", "score", shape) if k not in result]:
                yield f"{where}: has no {' and no '.join(map(repr, missing))}"
            elif not _is_in(result["image_id"], sizes):
                yield f"{where}: image_id {result['image_id']!r} is not an image of the ground truth"
            elif not _is_in(result["category_id"], categories):
                yield f"{where}: category_id {result['category_id']!r} is not a category of the ground truth"
            elif not is_number(result["score"]):
                yield f"{where}: its score is {result['score']!r} and must be a finite number"
            elif iou_type == "segm" and not isinstance(result["segmentation"], Mapping):
                yield f"{where}: its segmentation must be an RLE object, not {_kind(result['segmentation'])}"
            elif problem := _shape_problem(result, sizes[result["image_id"]], iou_type):
                yield f"{where}: {problem}"

    advice = "Are these results of another data set, or made for another --iou-type?"
    _raise_if_any("The results", problems(), advice)


def _raise_if_any(what: str, problems: Iterator[str], advice: str) -> None:
    found = list(problems)
    if found:
        lines = [f"  {problem}" for problem in found[:MAX_LISTED]]
        if len(found) > MAX_LISTED:
            lines.append(f"  and {len(found) - MAX_LISTED} more")
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        raise ResultsError("\n".join([f"{what} cannot be evaluated, {count}:", *lines, advice]))


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number")


def _is_in(value: object, ids: Container[Any]) -> bool:
    return isinstance(value, int | str) and value in ids  # a list or an object would not even hash


def _shape_problem(item: Mapping[str, Any], size: tuple[int, int], iou_type: IouType) -> str | None:
    """What is wrong with the box or the segmentation of an annotation or a result."""
    if iou_type == "bbox":
        box = item["bbox"]
        if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(is_number, box)):
            return f"its bbox is {box!r} and must be four finite numbers: x, y, width, height"
        return f"its bbox {list(box)!r} has a negative width or height" if min(box[2:]) < 0 else None
    # pycocotools runs past its buffers when an RLE is damaged, so each is checked before it sees it.
    try:
        check_segmentation(item["segmentation"], *size)
    except InvalidItem as error:
        return error.message
    return None

"""From a model and a data set to COCO results and COCO's figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mrcnn.engine.checkpoint import CheckpointError, CheckpointInfo
from mrcnn.engine.coco_eval import Figures, IouType, coco_figures, figure_names
from mrcnn.engine.output import ProgressLine
from mrcnn.engine.precision import Precision, autocast

if TYPE_CHECKING:
    from mrcnn.data import InstanceDataset
    from mrcnn.model import MaskRCNN

Results = list[dict[str, Any]]
IOU_TYPES: tuple[IouType, ...] = ("bbox", "segm")


def detect(
    model: MaskRCNN, images: Iterable[Tensor], batch_size: int = 1, precision: Precision = "fp32"
) -> Iterator[dict[str, Any]]:
    """Detections of one image after the other, on the CPU, masks as RLE.

    Args:
        model: put into eval mode for the call, and back.
        images: [3, H, W] float in 0..1, of any sizes, on any device.
        batch_size: images that go through the model together.
        precision: arithmetic of the model.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for batch in _batched(images, batch_size):
            with (
                torch.inference_mode(),
                autocast(device, precision),
            ):
                detections = model([image.to(device) for image in batch], mask_format="rle")
            for found in detections:
                yield {key: v.cpu() if isinstance(v, Tensor) else v for key, v in found.items()}
    finally:
        model.train(was_training)


def to_results(detections: dict[str, Any], image_id: int, category_ids: Sequence[int]) -> Results:
    """One image's detections as COCO results: RLE, box as x, y, width, height, the data's category ids."""
    boxes = detections["boxes"].double()
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
    rows = zip(boxes, detections["labels"].tolist(), detections["scores"].tolist(), detections["masks"], strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": box,
            "score": score,
            "segmentation": mask,
        }
        for box, label, score, mask in rows
    ]


def evaluate(
    model: MaskRCNN,
    dataset: InstanceDataset,
    *,
    category_ids: Sequence[int] | None = None,
    max_dets: int = 100,
    batch_size: int = 1,
    precision: Precision = "fp32",
    console: Console | None = None,
) -> tuple[dict[str, Figures], Results]:
    """Runs a model over a data set and evaluates what it finds.

    Args:
        model: on any device.
        dataset: images and ground truth.
        category_ids: the category id of each of the model's labels; by default the data set's own. Results of
            a category that the data set lacks are left out.
        max_dets: detections counted per image and category; the model's own limit per image must be as high
            for this to have an effect.
        batch_size: images that go through the model together.
        precision: arithmetic of the model.
        console: where to show progress; nowhere by default.

    Returns:
        The twelve figures for "bbox" and for "segm", and the results that they were computed from.
    """
    ids = dataset.category_ids if category_ids is None else category_ids
    known = set(dataset.category_ids[1:])
    results: Results = []
    images = (dataset[i].image for i in range(len(dataset)))
    with ProgressLine(console or Console(quiet=True), "evaluating", len(dataset), unit="images") as progress:
        for image_id, found in zip(dataset.image_ids, detect(model, images, batch_size, precision), strict=True):
            results += [r for r in to_results(found, image_id, ids) if r["category_id"] in known]
            progress.advance()
    truth = dataset.coco_ground_truth()
    return {kind: coco_figures(truth, results, kind, max_dets) for kind in IOU_TYPES}, results


def check_classes(info: CheckpointInfo, dataset: InstanceDataset) -> None:
    """Refuses to evaluate a checkpoint on data whose categories mean something else.

    Raises:
        CheckpointError: if they share no category id, or one id stands for two names.
    """
    theirs = dict(zip(dataset.category_ids[1:], dataset.class_names[1:], strict=True))
    ours = dict(zip(info.category_ids[1:], info.class_names[1:], strict=True))
    clashes = [f"{i} is {ours[i]!r} and {theirs[i]!r}" for i in ours if i in theirs and ours[i] != theirs[i]]
    if clashes or not ours.keys() & theirs.keys():
        reason = "; ".join(clashes[:5]) if clashes else "they have no category id in common"
        raise CheckpointError(
            f"The checkpoint ({_listed(ours)}) and the data ({_listed(theirs)}) do not have the same "
            f"categories: {reason}. Evaluate on data of the checkpoint's categories."
        )


def figures_table(figures: Mapping[str, Figures], max_dets: int = 100) -> Table:
    """Figures side by side, one row per kind of overlap; a dash where no object has that size."""
    table = Table(title="COCO figures")
    table.add_column("overlap of")
    names = figure_names(max_dets)
    for name in names:
        table.add_column(name, justify="right")
    words = {"bbox": "boxes", "segm": "masks"}
    for kind, values in figures.items():
        cells = [f"{values[name]:.3f}" if values[name] >= 0 else "-" for name in names]
        table.add_row(words[kind], *cells)
    return table


def _listed(categories: dict[int, str]) -> str:
    words = [f"{i} {name}" for i, name in list(categories.items())[:5]]
    return ", ".join(words) + (f" and {len(categories) - 5} more" if len(categories) > 5 else "")


def _batched(images: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    batch: list[Tensor] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch

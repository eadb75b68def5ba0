"""One training from start to report: build, train, evaluate, draw, explain. `demo` and `train` are this."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console

from mrcnn import build_model, load_weights
from mrcnn.data import InstanceDataset, count_objects
from mrcnn.engine.coco_eval import Figures
from mrcnn.engine.evaluate import Results, evaluate, figures_table
from mrcnn.engine.output import read_metrics, writable_folder, write_json
from mrcnn.engine.recipes import Recipe
from mrcnn.engine.train import TrainResult, train
from mrcnn.report import Report, loss_curves, write_report
from mrcnn.visualize import draw_instances

MOST_PICTURES = 6
PICTURE_SCORE = 0.5


@dataclass(frozen=True)
class Experiment:
    """What to train, on what, and where to put it.

    Attributes:
        preset: name of the model.
        recipe: how to train.
        training: the data to train on.
        validation: the data to evaluate on, or none.
        out: folder for everything that is written.
        device: to train on.
        init: weights to start from, as `mrcnn.load_weights` reads them.
        resume: continue the training in `out`.
        title: heading of the report.
    """

    preset: str
    recipe: Recipe
    training: InstanceDataset
    validation: InstanceDataset | None
    out: Path
    device: torch.device
    init: Path | None = None
    resume: bool = False
    title: str = "Mask R-CNN, trained"


def run(experiment: Experiment, console: Console) -> Mapping[str, Figures]:
    """Runs an experiment.

    Writes, besides what `train` does: `losses.svg`, `report.html` and, with validation data, `metrics.json`
    (the twelve figures for "bbox" and "segm"), `results.json` (COCO results) and `pictures/`.

    Returns:
        The figures; nothing without validation data.
    """
    out, recipe = writable_folder(experiment.out), experiment.recipe
    torch.manual_seed(recipe.train.seed)
    model = build_model(experiment.preset, num_classes=len(experiment.training.class_names), **dict(recipe.model))
    if experiment.init is not None:
        new = load_weights(model, experiment.init, other_classes=True)
        if new:
            names = ", ".join(new)
            console.print(f"Of {experiment.init}, these layers have another shape and start anew: {names}")
    result = train(
        model.to(experiment.device),
        experiment.training,
        recipe.train,
        out,
        augmentation=recipe.augmentation,
        validation=experiment.validation,
        resume=experiment.resume,
        console=console,
    )
    if not result.in_time:
        console.print(f"Training ended after {recipe.train.max_seconds:g} seconds, at step {result.step}.")

    figures: dict[str, Figures] = {}
    pictures: list[list[tuple[str, Image.Image]]] = []
    began = time.perf_counter()
    if experiment.validation is not None:
        figures, results = evaluate(
            result.model,
            experiment.validation,
            category_ids=experiment.training.category_ids,
            precision=recipe.train.precision,
            console=console,
        )
        write_json(out / "metrics.json", figures)
        write_json(out / "results.json", results)
        pictures = draw_comparisons(experiment.validation, results, out / "pictures")
        console.print(figures_table(figures))
    seconds_evaluating = time.perf_counter() - began

    history = read_metrics(out / "metrics.jsonl")
    (out / "losses.svg").write_text(loss_curves(history), encoding="utf-8")
    report = _report(experiment, result, figures, history, pictures, seconds_evaluating)
    write_report(out / "report.html", report)
    console.print(f"Checkpoint: {result.checkpoint}\nReport: {out / 'report.html'}", soft_wrap=True)
    return figures


def draw_comparisons(dataset: InstanceDataset, results: Results, folder: Path) -> list[list[tuple[str, Image.Image]]]:
    """Draws predictions beside the ground truth for the first few images, and saves both as PNG.

    Returns:
        A row per image: the prediction and the truth, each with a caption.
    """
    writable_folder(folder)
    labels = {category: label for label, category in enumerate(dataset.category_ids)}
    rows = []
    for index in range(min(len(dataset), MOST_PICTURES)):
        sample = dataset[index]
        found = [r for r in results if r["image_id"] == sample.image_id and r["score"] >= PICTURE_SCORE]
        corners = [(x, y, x + w, y + h) for x, y, w, h in (r["bbox"] for r in found)]
        detections = {
            "boxes": torch.tensor(corners).reshape(-1, 4),
            "labels": torch.tensor([labels[r["category_id"]] for r in found], dtype=torch.int64),
            "scores": torch.tensor([r["score"] for r in found]),
            "masks": [r["segmentation"] for r in found],
        }
        predicted = draw_instances(sample.image, detections, dataset.class_names)
        truth = draw_instances(sample.image, sample.target, dataset.class_names)
        name = Path(sample.file_name).stem
        predicted.save(folder / f"{name}_prediction.png")
        truth.save(folder / f"{name}_truth.png")
        score = f"{PICTURE_SCORE:.0%}"
        rows.append(
            [
                (f"{sample.file_name}: {len(found)} predictions with a score of {score} or more", predicted),
                (f"{sample.file_name}: the truth, {len(sample.target['labels'])} objects", truth),
            ]
        )
    return rows


def _report(
    experiment: Experiment,
    result: TrainResult,
    figures: Mapping[str, Figures],
    history: Sequence[Mapping[str, Any]],
    pictures: Sequence[Sequence[tuple[str, Image.Image]]],
    seconds_evaluating: float,
) -> Report:
    training, validation, config = experiment.training, experiment.validation, result.model.config
    objects = count_objects(training).objects
    classes = training.class_names[1:]
    names = ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")
    start = "random weights" if experiment.init is None else f"the weights {experiment.init.name}"
    evaluated_on = "nothing"
    introduction = (
        f"A Mask R-CNN ({experiment.preset}) learned to find objects and to outline each one pixel by pixel "
        f"({names}). It started from {start} and was trained on {_images(training)} with "
        f"{objects} annotated objects ({training.name})."
    )
    if validation is not None:
        evaluated_on = f"{_images(validation)} with {count_objects(validation).objects} objects"
        evaluated_on += f" ({validation.name})"
        introduction += f" It was then tested on {evaluated_on}."
    seconds = max((record.get("seconds", 0.0) for record in history), default=result.seconds)
    facts = [(f"training, {result.step} steps of {experiment.recipe.train.batch_size} images", _time(seconds))]
    if figures:
        facts = [
            ("mask AP", f"{figures['segm']['AP']:.3f}"),
            ("mask AP at half overlap (AP50)", f"{figures['segm']['AP50']:.3f}"),
            ("box AP", f"{figures['bbox']['AP']:.3f}"),
            *facts,
            ("evaluation", _time(seconds_evaluating)),
        ]
    parameters = sum(p.numel() for p in result.model.parameters())
    device = str(experiment.device)
    if experiment.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(experiment.device)})"
    machine = {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    weights = result.checkpoint
    return Report(
        title=experiment.title,
        introduction=introduction,
        facts=facts,
        figures=figures,
        evaluated_on=evaluated_on,
        history=history,
        pictures=pictures,
        settings={
            "Training": {"recipe": experiment.recipe.name, **dataclasses.asdict(experiment.recipe.train)},
            "Augmentation": dataclasses.asdict(experiment.recipe.augmentation),
            "Model": {**dataclasses.asdict(config), "parameters": f"{parameters:,}"},
            "Machine": machine,
        },
        next_commands=[
            ("Find objects in pictures of your own:", f"mrcnn predict {weights} PICTURES --out predictions"),
            ("Evaluate on other data in COCO format:", f"mrcnn eval {weights} ANNOTATIONS.json"),
            (
                "Train on data of your own, in COCO format, and start from these weights:",
                f"mrcnn train TRAIN.json --val VAL.json --out runs/mine --model {experiment.preset} --init {weights}",
            ),
        ],
    )


def _images(dataset: InstanceDataset) -> str:
    return "one image" if len(dataset) == 1 else f"{len(dataset)} images"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"

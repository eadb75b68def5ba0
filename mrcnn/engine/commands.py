"""What the commands of `mrcnn.cli` do: check everything that a person may have got wrong, then work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from mrcnn import PRESETS, build_model
from mrcnn.data import DatasetError, ImageError, InstanceDataset, nuclei_dataset, open_dataset, summarize
from mrcnn.engine import experiment
from mrcnn.engine import predict as prediction
from mrcnn.engine.checkpoint import CheckpointError, CheckpointInfo, load_model, read_info
from mrcnn.engine.coco_eval import Figures, ResultsError, coco_figures, read_json
from mrcnn.engine.evaluate import check_classes, figures_table
from mrcnn.engine.evaluate import evaluate as evaluate_model
from mrcnn.engine.output import writable_folder, write_json
from mrcnn.engine.recipes import AUGMENTATIONS, DEMO, Recipe, TrainConfig, recipe_for
from mrcnn.engine.train import CHECKPOINT, RESUME, TrainingError

if TYPE_CHECKING:
    from mrcnn.cli import Demo, Eval, Models, Predict, Train


class CommandError(ValueError):
    """Arguments that do not go together, or that this machine cannot serve."""


USER_ERRORS = (
    *(CommandError, DatasetError, ImageError, CheckpointError, ResultsError, TrainingError),
    *(prediction.PredictionError, OSError, torch.OutOfMemoryError),
)


def demo(arguments: Demo, console: Console) -> None:
    """`mrcnn demo`."""
    changes = {"seed": arguments.seed, "steps": arguments.steps}
    experiment.run(
        experiment.Experiment(
            preset="mask_rcnn_r18_fpn_gn",
            recipe=_changed(DEMO, "mask_rcnn_r18_fpn_gn", changes),
            training=nuclei_dataset("left"),
            validation=nuclei_dataset("right"),
            out=arguments.out,
            device=_device(arguments.device),
            title="Mask R-CNN demo: cell nuclei",
        ),
        console,
    )


def train(arguments: Train, console: Console) -> None:
    """`mrcnn train`."""
    if arguments.model not in PRESETS:
        raise CommandError(f"--model is {arguments.model!r} and must be one of {', '.join(PRESETS)}.")
    if arguments.val is None and (arguments.eval_every or arguments.val_images is not None):
        raise CommandError("--eval-every and --val-images need --val.")
    device = _device(arguments.device)
    out = writable_folder(arguments.out)
    if arguments.resume and not (out / RESUME).exists():
        raise CommandError(f"{out}: holds no training to resume (no {RESUME}). Start it without --resume.")
    if not arguments.resume and (out / CHECKPOINT).exists():
        raise CommandError(f"{out}: already holds a training. Go on with --resume, or give another --out.")

    training = _open(arguments.data, arguments.images, arguments.skip_bad, out / "skipped.jsonl")
    validation = None
    if arguments.val is not None:
        skipped_to = out / "skipped_val.jsonl"
        validation = _open(arguments.val, arguments.val_images, arguments.skip_bad, skipped_to)
        check_classes(CheckpointInfo("", {}, tuple(training.class_names), tuple(training.category_ids)), validation)
    for dataset in (training, validation):
        if dataset is not None:
            console.print(summarize(dataset))
    experiment.run(
        experiment.Experiment(
            preset=arguments.model,
            recipe=_changed(recipe_for(training, arguments.model), arguments.model, vars(arguments)),
            training=training,
            validation=validation,
            out=out,
            device=device,
            init=arguments.init,
            resume=arguments.resume,
            title=f"Mask R-CNN, trained on {training.name}",
        ),
        console,
    )


def evaluate(arguments: Eval, console: Console) -> None:
    """`mrcnn eval`."""
    for path in (arguments.json, arguments.save_results):
        if path is not None:
            writable_folder(path.parent)
    if arguments.max_dets <= 10:
        raise CommandError(f"--max-dets is {arguments.max_dets} and must be more than 10.")
    figures: Mapping[str, Figures]
    match arguments.checkpoint, arguments.data, arguments.annotations, arguments.results:
        case None, None, Path() as annotations, Path() as results:
            truth, found = read_json(annotations), read_json(results)
            kind = arguments.iou_type
            figures = {kind: coco_figures(truth, found, kind, arguments.max_dets)}
        case Path() as checkpoint, Path() as data, None, None:
            figures = _evaluate_checkpoint(checkpoint, data, arguments, console)
        case _:
            raise CommandError(
                "Give either a checkpoint and data, or --annotations and --results; see `mrcnn eval --help`."
            )
    console.print(figures_table(figures, arguments.max_dets))
    if arguments.json is not None:
        write_json(arguments.json, figures[arguments.iou_type])


def _evaluate_checkpoint(checkpoint: Path, data: Path, arguments: Eval, console: Console) -> Mapping[str, Figures]:
    info = read_info(checkpoint)
    device = _device(arguments.device)
    dataset = _open(data, arguments.images, arguments.skip_bad, None)
    check_classes(info, dataset)
    # More detections can only be counted if the model gives them.
    limit = max(arguments.max_dets, int(info.config.get("detections_per_image", 0)))
    model, _ = load_model(checkpoint, detections_per_image=limit)
    figures, results = evaluate_model(
        model.to(device),
        dataset,
        category_ids=info.category_ids,
        max_dets=arguments.max_dets,
        console=console,
    )
    if arguments.save_results is not None:
        write_json(arguments.save_results, results)
    return figures


def predict(arguments: Predict, console: Console) -> None:
    """`mrcnn predict`."""
    if not 0 <= arguments.score <= 1:
        raise CommandError(f"--score is {arguments.score} and must be in 0..1.")
    if not arguments.paths:
        raise CommandError("Give at least one picture or folder of pictures.")
    model, info = load_model(arguments.checkpoint)
    predictions = prediction.predict(
        model.to(_device(arguments.device)),
        arguments.paths,
        arguments.out,
        info.class_names,
        info.category_ids,
        score_threshold=arguments.score,
        skip_bad=arguments.skip_bad,
        console=console,
    )
    console.print(prediction.predictions_table(predictions, info.class_names, info.category_ids))
    console.print(f"Pictures: {arguments.out / 'pictures'}", soft_wrap=True)
    console.print(f"Results: {arguments.out / 'results.json'}", soft_wrap=True)


def models(arguments: Models, console: Console) -> None:
    """`mrcnn models`."""
    table = Table(title="Models", caption="Parameters are counted with 91 classes; sizes are in pixels.")
    table.add_column("preset")
    for title in ("parameters", "short side", "long side", "detections per image"):
        table.add_column(title, justify="right")
    for name, config in PRESETS.items():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build_model(name).parameters())
        sizes = (config.min_size, config.max_size, config.detections_per_image)
        table.add_row(name, f"{parameters / 1e6:.1f} M", *map(str, sizes))
    console.print(table)


def _changed(recipe: Recipe, preset: str, arguments: Mapping[str, Any]) -> Recipe:
    """A recipe with the arguments that were given in place of its own settings, of training and of model."""
    given = {name: value for name, value in arguments.items() if value is not None}
    settings = {field.name for field in dataclasses.fields(TrainConfig)} & given.keys()
    model = dict(recipe.model) | {name: given[name] for name in ("min_size", "max_size") if name in given}
    sized = dataclasses.replace(PRESETS[preset], **model)
    if not 1 <= sized.min_size <= sized.max_size:
        raise CommandError(
            f"--min-size is {sized.min_size} and --max-size {sized.max_size}: the first must be 1 or more "
            "and at most the second."
        )
    try:
        config = dataclasses.replace(recipe.train, **{name: given[name] for name in settings})
    except ValueError as error:
        raise CommandError(f"{error}.") from error
    augmentation = AUGMENTATIONS[given["augment"]] if "augment" in given else recipe.augmentation
    return dataclasses.replace(recipe, train=config, model=model, augmentation=augmentation)


def _open(source: Path, images: Path | None, skip_bad: bool, skipped_to: Path | None) -> InstanceDataset:
    return open_dataset(source, images, skip_bad=skip_bad, skipped_to=skipped_to)


def _device(name: str | None) -> torch.device:
    """The device of this name, or the GPU if there is one, once it is known to work."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise CommandError(f"--device is {name!r}, which cannot be used here ({first_line}).") from error
    return device

"""Training: one loop, its checkpoints, and what it reports on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from torch import Tensor

from mrcnn.data import Augmentation, Sample, batches
from mrcnn.engine.checkpoint import (
    CheckpointError,
    model_info,
    read_tensors,
    save_checkpoint,
    write_tensors,
)
from mrcnn.engine.evaluate import evaluate
from mrcnn.engine.optim import (
    MovingAverage,
    learning_rate,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
)
from mrcnn.engine.output import MetricsLog, ProgressLine, writable_folder
from mrcnn.engine.precision import autocast
from mrcnn.engine.recipes import TrainConfig

if TYPE_CHECKING:
    from mrcnn.data import InstanceDataset
    from mrcnn.model import MaskRCNN

CHECKPOINT = "checkpoint.safetensors"
RESUME = "resume.safetensors"


class TrainingError(RuntimeError):
    """A training that cannot go on."""


@dataclass(frozen=True)
class TrainResult:
    """How a training ended.

    Attributes:
        model: the model to use: the moving average where there is one.
        checkpoint: the file that holds it.
        step: optimizer steps done, those before a resume included.
        seconds: wall time of this call, evaluations included.
        in_time: False if `max_seconds` ended it.
    """

    model: MaskRCNN
    checkpoint: Path
    step: int
    seconds: float
    in_time: bool


def train(
    model: MaskRCNN,
    dataset: InstanceDataset,
    config: TrainConfig,
    out_dir: Path,
    *,
    augmentation: Augmentation | None = None,
    validation: InstanceDataset | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> TrainResult:
    """Trains a model; the same seed on the same machine gives the same weights, resumed or not.

    Torch's global generators are seeded anew at each step.

    Args:
        model: on the device to train on; changed in place.
        dataset: its labels must be fewer than the model's classes.
        config: see `TrainConfig`.
        out_dir: receives `checkpoint.safetensors` (the model to use), `resume.safetensors` (what a continued
            training needs), `metrics.jsonl` and, where TensorBoard is installed, `tensorboard/`.
        augmentation: what is done to each image; nothing by default.
        validation: evaluated every `eval_every` steps.
        resume: continue from `resume.safetensors` in `out_dir`.
        console: where to show progress; nowhere by default.

    Raises:
        TrainingError: if a loss or a gradient is no longer finite. The last checkpoint stays as it was.
        CheckpointError: if `resume` finds no state, or that of another model.
        OutputError: if `out_dir` cannot be written.
        ValueError: if the data set has more classes than the model.
    """
    if len(dataset.class_names) > model.config.num_classes:
        raise ValueError(
            f"model has {model.config.num_classes} classes and must have at least the data set's "
            f"{len(dataset.class_names)}, the background included"
        )
    began = time.perf_counter()
    writable_folder(out_dir)
    run = _Run(model, config)
    if resume:
        run.restore(out_dir / RESUME)
    loader = batches(
        dataset,
        config.batch_size,
        steps=config.steps,
        start_step=run.step,
        seed=config.seed,
        augmentation=augmentation,
        num_workers=config.workers,
        group_by_aspect=config.group_by_aspect,
    )
    log, meter = MetricsLog(out_dir, from_step=run.step), _Meter()
    saved_at = run.step if resume else None
    with contextlib.closing(log), _progress(console, config.steps, run.step) as progress:
        for samples in loader:
            meter.add(run.advance(samples), len(samples))
            seconds = time.perf_counter() - began
            last = run.step == config.steps or 0 < config.max_seconds <= seconds
            saves = last or _due(run.step, config.checkpoint_every)
            evaluates = not last and _due(run.step, config.eval_every)
            if saves or evaluates or _due(run.step, config.log_every):
                means = meter.read()
                _check_finite(means, run.step, config, saved_at)
                rate = learning_rate(config, run.step - 1)
                spent = round(run.seconds_before + seconds, 3)
                log.write({"step": run.step, "lr": rate, "seconds": spent, **means})
                progress.note = f"loss {means['loss']:.3f}"
            progress.advance()
            if evaluates and validation is not None:
                ids = dataset.category_ids
                figures, _ = evaluate(run.result, validation, category_ids=ids, precision=config.precision)
                log.write({"step": run.step, "eval": figures})
                meter.restart_clock()
            if saves:
                run.save(out_dir, dataset, seconds)
                saved_at = run.step
            if last:
                break
    seconds = time.perf_counter() - began
    return TrainResult(run.result.eval(), out_dir / CHECKPOINT, run.step, seconds, run.step >= config.steps)


class _Run:
    """The state of a training, and one step of it."""

    def __init__(self, model: MaskRCNN, config: TrainConfig) -> None:
        self.model, self.config, self.step, self.seconds_before = model.train(), config, 0, 0.0
        self.device = next(model.parameters()).device
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(model, config)
        self.average = MovingAverage(model, config.ema_decay) if config.ema_decay else None

    @property
    def result(self) -> MaskRCNN:
        """The model to evaluate and to keep."""
        return self.model if self.average is None else self.average.model

    def advance(self, samples: list[Sample]) -> dict[str, Tensor]:
        """One optimizer step; gives the losses and the gradient's norm without waiting for the device."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        # The model samples anchors and RoIs at random. A seed of its own for each step makes a resumed
        # training take the same ones without storing the generators of every device.
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        images = [sample.image.to(self.device, non_blocking=True) for sample in samples]
        targets = [
            {name: value.to(self.device, non_blocking=True) for name, value in sample.target.items()}
            for sample in samples
        ]
        with autocast(self.device, config.precision):
            losses: dict[str, Tensor] = self.model(images, targets)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip_norm or math.inf)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, self.step)
        self.step += 1
        return {"loss": total, **losses, "grad_norm": norm}

    def save(self, folder: Path, dataset: InstanceDataset, seconds: float) -> None:
        """Writes the checkpoint and, beside it, what a training continued after `seconds` needs."""
        training = dataclasses.asdict(self.config)
        info = model_info(self.model, dataset.class_names, dataset.category_ids, self.step, training=training)
        save_checkpoint(folder / CHECKPOINT, self.result, info)
        parts = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
            "average": {} if self.average is None else self.average.model.state_dict(),
        }
        tensors = {f"{part}/{name}": v for part, values in parts.items() for name, v in values.items()}
        header = {"resume_step": self.step, "seconds": self.seconds_before + seconds}
        write_tensors(folder / RESUME, tensors, header)

    def restore(self, path: Path) -> None:
        """Takes up the state that `save` wrote; an average that starts now starts from the weights."""
        tensors, header = read_tensors(path)
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for full_name, value in tensors.items():
            part, _, name = full_name.partition("/")
            parts[part][name] = value
        try:
            self.model.load_state_dict(parts["model"])
            if self.average is not None:
                self.average.model.load_state_dict(parts["average"] or parts["model"])
            restore_optimizer(self.model, self.optimizer, parts["optimizer"])
            self.step, self.seconds_before = int(header["resume_step"]), float(header["seconds"])
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{path}: does not fit this training ({reason}). Resume with the model, the data and the "
                "optimizer that it was started with, or start anew in another folder."
            ) from error


class _Meter:
    """Means of the losses since the last read; they stay on the device until then."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sum: Tensor | None = None
        self._steps = self._images = 0
        self._since = time.perf_counter()

    def add(self, values: dict[str, Tensor], images: int) -> None:
        stacked = torch.stack([value.detach().float() for value in values.values()])
        self._names = tuple(values)
        self._sum = stacked if self._sum is None else self._sum + stacked
        self._steps += 1
        self._images += images

    def read(self) -> dict[str, float]:
        """The means, and images per second; the one point of a training that waits for the device."""
        if self._sum is None:
            raise ValueError("there is nothing to read: no step was added since the last time")
        means = dict(zip(self._names, (self._sum / self._steps).tolist(), strict=True))
        seconds = time.perf_counter() - self._since
        means["images_per_second"] = round(self._images / max(seconds, 1e-9), 3)
        self._sum, self._steps, self._images = None, 0, 0
        self.restart_clock()
        return means

    def restart_clock(self) -> None:
        self._since = time.perf_counter()


def _check_finite(means: dict[str, float], step: int, config: TrainConfig, saved_at: int | None) -> None:
    """Stops a training that has gone astray; one infinite loss or gradient makes its mean infinite too."""
    wrong = [name for name, value in means.items() if not math.isfinite(value)]
    if wrong:
        kept = "no checkpoint was written yet" if saved_at is None else f"the checkpoint is of step {saved_at}"
        raise TrainingError(
            f"Training stopped at step {step}: no longer finite: {', '.join(wrong)}; {kept}. Lower the "
            f"learning rate (--lr, {config.lr:g} now) or lengthen its warm-up (--warmup-steps, "
            f"{config.warmup_steps} now)."
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _progress(console: Console | None, steps: int, done: int) -> ProgressLine:
    return ProgressLine(console or Console(quiet=True), "training", steps, done)

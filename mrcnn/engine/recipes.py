"""How to train: the settings of one training, and the recipes that choose them by the size of the data set.

Everything here is data. A recipe is a starting point that a person overrides on the command line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from types import MappingProxyType
from typing import Any, Literal

from mrcnn.data import Augmentation, InstanceDataset
from mrcnn.engine.precision import Precision
from mrcnn.presets import PRESETS


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    Attributes:
        steps: optimizer steps.
        batch_size: images per step.
        optimizer: SGD with momentum, as in the paper, or AdamW, which needs less care on small data.
        lr: learning rate after the warm-up.
        weight_decay: on weights of convolutions and linear layers; never on norms and biases.
        momentum: of SGD.
        warmup_steps: steps over which the learning rate rises linearly to `lr`.
        schedule: cosine down to zero, or a drop to a tenth at each of `milestones`.
        milestones: fractions of `steps`, for the multistep schedule.
        clip_norm: largest norm of the gradient; larger ones are scaled down. 0 is no limit.
        ema_decay: decay of the moving average of the weights, which is then what is evaluated and saved. 0 is
            no average.
        precision: arithmetic of the forward pass: float32, bfloat16 autocast, or whichever is faster here.
        seed: of the order of images, the augmentation, and the sampling in the model.
        log_every: steps between two reads of the losses from the device.
        checkpoint_every: steps between two checkpoints; one is always written at the end. 0 is only there.
        eval_every: steps between two evaluations on the validation data. 0 is none before the end.
        max_seconds: wall time after which training stops by itself and saves; 0 is no limit.
        workers: processes that load data; 0 loads in this one.
        group_by_aspect: batches hold only upright or only wide images, so that less padding is computed.
    """

    steps: int = 1000
    batch_size: int = 2
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 3e-4
    weight_decay: float = 1e-4
    momentum: float = 0.9
    warmup_steps: int = 50
    schedule: Literal["cosine", "multistep"] = "cosine"
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)
    clip_norm: float = 10.0
    ema_decay: float = 0.0
    precision: Precision = "auto"
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    eval_every: int = 0
    max_seconds: float = 0.0
    workers: int = 0
    group_by_aspect: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "log_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)} and must be more than 0")
        for name in (
            *("weight_decay", "momentum", "warmup_steps", "clip_norm", "seed"),
            *("checkpoint_every", "eval_every", "max_seconds", "workers"),
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)} and must not be negative")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay} and must be in [0, 1)")


@dataclass(frozen=True)
class Recipe:
    """A training, the pictures it sees, and the model's settings that go with them.

    Attributes:
        name: for the log and the report.
        largest: most images in a data set that this recipe is meant for.
        train: settings of the training.
        augmentation: what is done to each training image.
        model: fields of the preset to override, for instance `min_size`.
    """

    name: str
    largest: float
    train: TrainConfig
    augmentation: Augmentation
    model: Mapping[str, Any] = field(default_factory=dict)


# By name, for `mrcnn train --augment`.
AUGMENTATIONS: Mapping[str, Augmentation] = MappingProxyType(
    {
        "none": Augmentation(hflip=0.0),
        "photos": Augmentation(),
        "overhead": Augmentation(vflip=0.5, rot90=True),  # microscopes and aircraft know no up and down
    }
)

DEMO = Recipe(
    name="demo",
    largest=1,
    train=TrainConfig(
        steps=300, batch_size=1, lr=1.5e-3, warmup_steps=30, ema_decay=0.97, log_every=10, checkpoint_every=0
    ),
    augmentation=replace(AUGMENTATIONS["overhead"], crop=(256, 256)),
    model={"min_size": 384, "max_size": 768, "roi_samples": 64},  # the image enlarged by half
)

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        name="small",
        largest=2_000,
        train=TrainConfig(steps=500, batch_size=1, lr=1.5e-3, warmup_steps=30, ema_decay=0.97),
        augmentation=Augmentation(),
    ),
    Recipe(  # the paper's schedule, its learning rate scaled from 16 images a step to 2
        name="paper",
        largest=float("inf"),
        train=TrainConfig(
            steps=720_000,
            batch_size=2,
            optimizer="sgd",
            lr=0.0025,
            warmup_steps=1_000,
            schedule="multistep",
            clip_norm=0.0,
            checkpoint_every=5_000,
            workers=4,
            group_by_aspect=True,
        ),
        augmentation=Augmentation(),
    ),
)

# Objects are easy to outline from this size on: square root of the mask's area, in pixels of the network's input.
EASY_SIZE = 28
# Enlarging further adds no detail, only work.
MOST_ENLARGED = 1.5
LARGEST_SHORT_SIDE = 800  # the paper's
EPOCHS = 5


def recipe_for(dataset: InstanceDataset, preset: str) -> Recipe:
    """The recipe for a data set: by its number of images, and with an input size by the size of its objects.

    Small data sets are seen at least `EPOCHS` times. Their images are enlarged beyond the preset's `min_size` where
    otherwise half of the objects would be smaller than `EASY_SIZE`.
    """
    recipe = next(recipe for recipe in RECIPES if len(dataset) <= recipe.largest)
    if recipe is RECIPES[-1]:
        return recipe
    steps = max(recipe.train.steps, EPOCHS * len(dataset) // recipe.train.batch_size)
    config, min_size = PRESETS[preset], _easy_min_size(dataset)
    model = dict(recipe.model)
    if min_size > config.min_size:
        model |= {"min_size": min_size, "max_size": round(min_size * config.max_size / config.min_size)}
    return replace(recipe, train=replace(recipe.train, steps=steps), model=model)


def _easy_min_size(dataset: InstanceDataset) -> int:
    """Length of the images' short side with which half of the objects have `EASY_SIZE`, a multiple of 32."""
    sizes = [
        math.sqrt(annotation.area) / min(record.height, record.width)
        for record in dataset.records
        for annotation in record.annotations
        if not annotation.is_crowd
    ]
    if not sizes:
        return 0
    enlarged = MOST_ENLARGED * median(min(size) for size in dataset.image_sizes)
    wanted = min(EASY_SIZE / max(median(sizes), 1e-6), enlarged, LARGEST_SHORT_SIDE)
    return 32 * round(wanted / 32)

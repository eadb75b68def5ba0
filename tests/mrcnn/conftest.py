"""Photos, small models and made-up scenes for the tests of the model."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mrcnn import MaskRCNN, build_model
from mrcnn.data import Sample, open_dataset

SMALL = {
    "min_size": 96,
    "max_size": 128,
    "fpn_channels": 32,
    "box_hidden": 48,
    "mask_channels": 32,
    "mask_convs": 2,
    "proposals_per_level_train": 100,
    "proposals_per_level_test": 80,
    "proposals_train": 150,
    "proposals_test": 120,
    "roi_samples": 64,
    "detections_per_image": 30,
}


@pytest.fixture
def photos(test_data: Callable[[str], Path]) -> list[Sample]:
    """The ten photos of tiny-coco's validation part with the lowest ids."""
    return _read_photos(test_data("tiny-coco/annotations/instances_val2017.json"))


@cache
def _read_photos(source: Path) -> list[Sample]:
    dataset = open_dataset(source)
    by_id = sorted(range(len(dataset)), key=lambda index: dataset.image_ids[index])
    return [dataset[index] for index in by_id[:10]]


@torch.no_grad()
def _wake(model: MaskRCNN) -> None:
    """Fresh residual branches are silent, and fresh heads give all boxes and classes almost the same score."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
    box = model.roi_heads.box
    for layer, spread in (
        (model.rpn.conv, 1.5),
        (model.rpn.objectness, 1.0),
        (model.rpn.offsets, 0.3),
        (box.fc6, 1.5),
        (box.fc7, 1.5),
        (box.classes, 0.7),
        (box.offsets, 1.0),
    ):
        nn.init.normal_(layer.weight, std=spread / layer.weight[0].numel() ** 0.5)


def _small_model(num_classes: int = 4, seed: int = 0, **changes: object) -> MaskRCNN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model("mask_rcnn_r18_fpn_gn", num_classes, **{**SMALL, **changes})
        _wake(model)
    return model


@pytest.fixture
def small_model() -> Callable[..., MaskRCNN]:
    """A function from num_classes, seed and fields of `ModelConfig` to a model that is fast."""
    return _small_model


def _scene(height: int, width: int, objects: int, seed: int, num_classes: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, height, width, generator=generator) * 0.3
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    boxes, masks = torch.zeros(objects, 4), torch.zeros(objects, height, width, dtype=torch.uint8)
    labels = torch.randint(1, num_classes, (objects,), generator=generator)
    for k in range(objects):
        radius = torch.randint(6, 20, (2,), generator=generator)
        center = torch.rand(2, generator=generator) * (torch.tensor([height, width]) - 2 * radius) + radius
        inside = ((y - center[0]) / radius[0]) ** 2 + ((x - center[1]) / radius[1]) ** 2 <= 1
        rows, columns = inside.any(dim=1).nonzero()[:, 0], inside.any(dim=0).nonzero()[:, 0]
        boxes[k] = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        masks[k] = inside
        image[labels[k] % 3, inside] += 0.6
    return image, {"boxes": boxes, "labels": labels, "masks": masks}


@pytest.fixture
def scene() -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    """A function from height, width, number of ellipses, seed and num_classes to an image and its target."""
    return _scene

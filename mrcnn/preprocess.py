"""From a list of images and their ground truth to one batch: normalised, resized, padded, channels last."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mrcnn.config import ModelConfig

# Of the coarsest level's stride that is not just a pooled one.
_DIVISIBLE = 32


@dataclass(frozen=True)
class Batch:
    """B images padded to one size."""

    images: Tensor  # [B, 3, H, W], channels last
    sizes: Tensor  # [B, 2] height and width of each image after resizing, without padding
    original_sizes: list[tuple[int, int]]
    resized_sizes: list[tuple[int, int]]


@dataclass(frozen=True)
class Targets:
    """Ground truth of B images in pixels of the network's input, padded to the largest number G of objects."""

    boxes: Tensor  # [B, G, 4]
    labels: Tensor  # [B, G]
    masks: Tensor  # [B, G, H, W] uint8
    counts: Tensor  # [B]


def resized_size(height: int, width: int, config: ModelConfig) -> tuple[int, int]:
    """Height and width after resizing: the short side to min_size, unless the long side would pass max_size."""
    factor = min(config.min_size / min(height, width), config.max_size / max(height, width))
    return max(math.floor(height * factor), 1), max(math.floor(width * factor), 1)


def make_batch(images: Sequence[Tensor], config: ModelConfig) -> Batch:
    """Normalises, resizes and pads images [3, H, W] with values 0 to 1.

    Raises:
        ValueError: an image has another shape or dtype.
    """
    if not images:
        raise ValueError("images is empty; it must hold at least one image")
    for image in images:
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ValueError(
                f"an image is {tuple(image.shape)} in {image.dtype}; it must be 3 x H x W floats from 0 to 1"
            )
        if 0 in image.shape:
            raise ValueError(f"an image is {tuple(image.shape)}; it must have pixels")
    original = [(image.shape[1], image.shape[2]) for image in images]
    resized = [resized_size(height, width, config) for height, width in original]
    first = images[0]
    height, width = _padded_size(resized)
    batch = first.new_zeros((len(images), height, width, 3)).permute(0, 3, 1, 2)
    mean, std = (first.new_tensor(each)[:, None, None] for each in (config.image_mean, config.image_std))
    for place, image, (h, w) in zip(batch, images, resized, strict=True):
        normalised = ((image - mean) / std)[None]
        place[:, :h, :w] = F.interpolate(normalised, size=(h, w), mode="bilinear", align_corners=False)[0]
    return Batch(
        images=batch,
        sizes=torch.tensor(resized, device=first.device),
        original_sizes=original,
        resized_sizes=resized,
    )


def _padded_size(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    height, width = (math.ceil(max(each) / _DIVISIBLE) * _DIVISIBLE for each in zip(*sizes, strict=True))
    return height, width


def make_targets(targets: Sequence[Mapping[str, Tensor]], batch: Batch, num_classes: int) -> Targets:
    """Resizes and pads the ground truth of each image: boxes [G_i, 4], labels [G_i], masks [G_i, H, W].

    Raises:
        ValueError: there is not one target an image, or one lacks a part or has a wrong shape; on a CPU also if a box
            has no area or a label is not from 1 to num_classes - 1.
    """
    if len(targets) != len(batch.original_sizes):
        raise ValueError(
            f"targets has {len(targets)} entries; it must have one for each of {len(batch.original_sizes)} images"
        )
    for target, size in zip(targets, batch.original_sizes, strict=True):
        _check_target(target, size, num_classes)
    images, device = batch.images.shape[0], batch.images.device
    counts = [target["boxes"].shape[0] for target in targets]
    capacity = max(counts)
    boxes = torch.zeros((images, capacity, 4), device=device)
    labels = torch.zeros((images, capacity), dtype=torch.int64, device=device)
    masks = torch.zeros((images, capacity, *batch.images.shape[-2:]), dtype=torch.uint8, device=device)
    for image, target in enumerate(targets):
        number = counts[image]
        if number == 0:
            continue
        (old_height, old_width), (height, width) = batch.original_sizes[image], batch.resized_sizes[image]
        scale = boxes.new_tensor([width / old_width, height / old_height])
        boxes[image, :number] = target["boxes"].to(boxes.dtype) * scale.repeat(2)
        labels[image, :number] = target["labels"]
        resized = F.interpolate(target["masks"].to(torch.uint8)[:, None], size=(height, width), mode="nearest")
        masks[image, :number, :height, :width] = resized[:, 0]
        # RoIAlign reads up to a pixel beyond the last one; it must find the last one again there, not the padding.
        masks[image, :number, height : height + 1, :width] = resized[:, 0, -1:]
        masks[image, :number, : height + 1, width : width + 1] = masks[image, :number, : height + 1, width - 1 : width]
    return Targets(boxes=boxes, labels=labels, masks=masks, counts=torch.tensor(counts, device=device))


def _check_target(target: Mapping[str, Tensor], size: tuple[int, int], num_classes: int) -> None:
    for name in ("boxes", "labels", "masks"):
        if name not in target:
            raise ValueError(f"a target has {sorted(target)}; it must have boxes, labels and masks")
    number = target["boxes"].shape[0]
    expected = {"boxes": (number, 4), "labels": (number,), "masks": (number, *size)}
    for name, shape in expected.items():
        if tuple(target[name].shape) != shape:
            raise ValueError(f"a target's {name} is {tuple(target[name].shape)}; for its image it must be {shape}")
    boxes, labels = target["boxes"], target["labels"]
    if boxes.device.type == "cpu" and number and not at_least_something(boxes):
        raise ValueError("a target has a box that is not finite or has no area; boxes are x1, y1, x2, y2 in pixels")
    if labels.device.type == "cpu" and number and not (labels.min() >= 1 and labels.max() < num_classes):
        raise ValueError(
            f"a target's labels are from {labels.min().item()} to {labels.max().item()}; with {num_classes} classes "
            f"they must be from 1 to {num_classes - 1}, as 0 is the background"
        )


def at_least_something(boxes: Tensor) -> bool:
    """Whether all boxes [G, 4] are finite and have an area."""
    return bool(torch.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all())

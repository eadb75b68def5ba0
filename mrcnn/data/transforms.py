"""Random augmentation: image, boxes and masks stay consistent, and one generator decides everything."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mrcnn.data.dataset import Sample
from mrcnn.data.images import UInt8Array


@dataclass(frozen=True)
class Augmentation:
    """What `augment` may do; the defaults are COCO's usual recipe, a horizontal flip.

    Attributes:
        hflip: probability of a mirror image, left for right.
        vflip: probability of a mirror image, top for bottom; for views from above, as in microscopy.
        rot90: turns by 0, 1, 2 or 3 quarters with equal probability; likewise.
        scale: smallest and largest zoom, drawn evenly on a logarithmic scale.
        crop: (height, width) of the result: a random window of the zoomed image, padded at the bottom and
            right with its mean colour where the image is smaller. Without a crop the zoom changes the size of
            the result, which a model that resizes its input undoes.
        min_area: an object that the window cuts is dropped if fewer of its pixels remain.
        brightness: largest shift of all values, in 0..1.
        contrast: largest logarithm of the factor on the distance from the mean.
        gamma: largest logarithm of the exponent.
        per_channel: draws these three for each channel, for stains and cameras whose colours vary.

    Raises:
        ValueError: a value is out of its range.
    """

    hflip: float = 0.5
    vflip: float = 0.0
    rot90: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    crop: tuple[int, int] | None = None
    min_area: int = 10
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    per_channel: bool = False

    def __post_init__(self) -> None:
        for name in ("hflip", "vflip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability in 0..1, but was {getattr(self, name)}")
        for name in ("brightness", "contrast", "gamma", "min_area"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, but was {getattr(self, name)}")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale must be two positive numbers in ascending order, but was {self.scale}")
        if self.crop is not None and min(self.crop) < 1:
            raise ValueError(f"crop must be a positive height and width, but was {self.crop}")


def augment(sample: Sample, augmentation: Augmentation, generator: torch.Generator) -> Sample:
    """Changes a sample at random; the given sample is left as it is.

    Args:
        sample: the sample.
        augmentation: what may be done.
        generator: a CPU generator; its state decides the result.
    """
    low, high = augmentation.scale
    zoom = math.exp(_uniform(math.log(low), math.log(high), generator))
    if augmentation.crop is not None:
        sample = random_crop(sample, augmentation.crop, zoom, augmentation.min_area, generator)
    elif zoom != 1:
        height, width = sample.image.shape[1:]
        size = max(1, round(height * zoom)), max(1, round(width * zoom))
        sample = crop_and_resize(sample, (0, 0, height, width), size, augmentation.min_area)
    if _uniform(0, 1, generator) < augmentation.hflip:
        sample = flip(sample, horizontal=True)
    if _uniform(0, 1, generator) < augmentation.vflip:
        sample = flip(sample, horizontal=False)
    if augmentation.rot90:
        sample = rotate(sample, int(torch.randint(4, (), generator=generator)))
    return replace(sample, image=_jitter_colors(sample.image, augmentation, generator))


def flip(sample: Sample, *, horizontal: bool) -> Sample:
    """The mirror image, left for right or top for bottom."""
    height, width = sample.image.shape[1:]
    x1, y1, x2, y2 = sample.target["boxes"].unbind(1)
    mirrored = (width - x2, y1, width - x1, y2) if horizontal else (x1, height - y2, x2, height - y1)
    axis = -1 if horizontal else -2
    target = sample.target | {
        "boxes": torch.stack(mirrored, dim=1),
        "masks": sample.target["masks"].flip(axis),
    }
    return replace(sample, image=sample.image.flip(axis), target=target)


def rotate(sample: Sample, quarters: int) -> Sample:
    """The sample turned counter-clockwise by quarters of a full turn."""
    quarters %= 4
    if quarters == 0:
        return sample
    boxes, width, height = sample.target["boxes"], sample.image.shape[2], sample.image.shape[1]
    for _ in range(quarters):
        x1, y1, x2, y2 = boxes.unbind(1)
        boxes = torch.stack((y1, width - x2, y2, width - x1), dim=1)
        width, height = height, width
    target = sample.target | {
        "boxes": boxes,
        "masks": torch.rot90(sample.target["masks"], quarters, dims=(-2, -1)).contiguous(),
    }
    return replace(sample, image=torch.rot90(sample.image, quarters, dims=(-2, -1)).contiguous(), target=target)


def random_crop(
    sample: Sample, size: tuple[int, int], zoom: float, min_area: int, generator: torch.Generator
) -> Sample:
    """A random window of the zoomed sample, padded to exactly `size` (height, width)."""
    extents = sample.image.shape[1:]
    window = [min(extent, max(1, round(s / zoom))) for s, extent in zip(size, extents, strict=True)]
    top, left = (
        int(torch.randint(extent - side + 1, (), generator=generator))
        for extent, side in zip(extents, window, strict=True)
    )
    resized = [min(s, max(1, round(side * zoom))) for s, side in zip(size, window, strict=True)]
    sample = crop_and_resize(sample, (top, left, window[0], window[1]), (resized[0], resized[1]), min_area)
    return _pad(sample, size)


def crop_and_resize(sample: Sample, window: tuple[int, int, int, int], size: tuple[int, int], min_area: int) -> Sample:
    """Cuts a window out and resizes it.

    Objects inside the window keep their (scaled) boxes; those that it cuts get the boxes of what remains of
    their masks. Objects without a remaining pixel are dropped, and cut ones with fewer than `min_area`.

    Args:
        sample: the sample.
        window: (top, left, height, width) in pixels, inside the image.
        size: (height, width) of the result.
        min_area: in pixels of the result.
    """
    top, left, height, width = window
    rows, columns = slice(top, top + height), slice(left, left + width)
    offset = torch.tensor([left, top, left, top], dtype=torch.float32)
    extent = torch.tensor([width, height, width, height], dtype=torch.float32)
    factor = torch.tensor([size[1] / width, size[0] / height] * 2, dtype=torch.float32)

    boxes = sample.target["boxes"] - offset
    clipped = boxes.clamp(min=torch.zeros_like(extent), max=extent)
    touching = (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
    cut = (boxes != clipped).any(dim=1)[touching]
    boxes = clipped[touching] * factor
    labels = sample.target["labels"][touching]
    image = sample.image[:, rows, columns].contiguous()
    if size != (height, width):
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    masks = _cut_masks(sample.target["masks"].numpy(), touching.nonzero()[:, 0].tolist(), window, size)

    areas = masks.reshape(len(masks), size[0] * size[1]).sum(axis=1, dtype=np.int32)
    kept = areas >= np.where(cut.numpy(), max(1, min_area), 1)
    if not kept.all():
        boxes, labels, cut, masks = boxes[kept], labels[kept], cut[kept], masks[kept]
    target = {"boxes": boxes, "labels": labels, "masks": torch.from_numpy(masks)}
    boxes[cut] = mask_boxes(target["masks"][cut])
    return replace(sample, image=image, target=target)


def mask_boxes(masks: Tensor) -> Tensor:
    """The tight boxes [G, 4] of masks [G, H, W] that all have pixels; x2, y2 are one past the last pixel."""
    sides = []
    for axis in (1, 2):  # over rows for x, over columns for y
        used = masks.amax(dim=axis)
        first = used.argmax(dim=1)
        last = used.shape[1] - used.flip(1).argmax(dim=1)
        sides += [first, last]
    x1, x2, y1, y2 = sides
    return torch.stack((x1, y1, x2, y2), dim=1).float()


def _cut_masks(
    masks: UInt8Array, chosen: list[int], window: tuple[int, int, int, int], size: tuple[int, int]
) -> UInt8Array:
    """Some of the masks, cut to the window and resized: each pixel takes the one in which its centre lies."""
    top, left, height, width = window
    rows = top + ((2 * np.arange(size[0]) + 1) * height) // (2 * size[0])
    columns = left + ((2 * np.arange(size[1]) + 1) * width) // (2 * size[1])
    # One gather into the result: copies of all masks cost more than all else here.
    positions = rows[:, None] * masks.shape[2] + columns
    cut = np.empty((len(chosen), *size), dtype=np.uint8)
    for result, index in zip(cut, chosen, strict=True):
        np.take(masks[index], positions, out=result, mode="clip")
    return cut


def _pad(sample: Sample, size: tuple[int, int]) -> Sample:
    height, width = sample.image.shape[1:]
    if (height, width) == size:
        return sample
    image = sample.image.mean(dim=(1, 2), keepdim=True).repeat(1, *size)
    image[:, :height, :width] = sample.image
    masks = F.pad(sample.target["masks"], (0, size[1] - width, 0, size[0] - height))
    return replace(sample, image=image, target=sample.target | {"masks": masks})


def _jitter_colors(image: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    strengths = torch.tensor([augmentation.brightness, augmentation.contrast, augmentation.gamma])
    if not strengths.any():
        return image
    draws = torch.rand(3, image.shape[0] if augmentation.per_channel else 1, 1, 1, generator=generator)
    shift, log_contrast, log_gamma = (2 * draws - 1) * strengths[:, None, None, None]
    mean = image.mean(dim=(1, 2), keepdim=True)
    image = (image - mean) * log_contrast.exp() + mean + shift
    return image.clamp(0, 1).pow(log_gamma.exp())


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))

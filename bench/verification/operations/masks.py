"""Problems of masks in an image: pasted, as runs, drawn from polygons, with a bit a pixel."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import kernels
from bench.peers import masks as peers
from bench.verification.operations.problem import Problem
from bench.verification.scenes import Scene, largest_gap
from kernels.paste_masks import Rule

RULES: tuple[Rule, ...] = ("torchvision", "centers")


def paste_masks(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    """Probabilities and masks by both rules."""
    masks, boxes, image, thresholds = _to_paste(scene, dtype)

    def both(function: Callable[..., Tensor], masks: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            function(masks, boxes, image, threshold, rule)
            for rule, chosen in thresholds.items()
            for threshold in (None, chosen)
        )

    return Problem(
        {"masks": masks, "boxes": boxes},
        lambda masks, boxes: both(kernels.paste_masks, masks, boxes),
        lambda masks, boxes: both(peers.paste_masks, masks, boxes),
        tuple(f"{what}, rule {rule}" for rule in RULES for what in ("probabilities", "masks")),
    )


def encode_masks(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    """Sizes and lengths of the texts [N, 3], and all their bytes, by both rules."""
    masks, boxes, image, thresholds = _to_paste(scene, dtype)

    def both(function: Callable[..., list[dict[str, Any]]], masks: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            part
            for rule, threshold in thresholds.items()
            for part in _texts(function(masks, boxes, image, threshold, rule))
        )

    return Problem(
        {"masks": masks, "boxes": boxes},
        lambda masks, boxes: both(kernels.encode_masks, masks, boxes),
        lambda masks, boxes: both(peers.encode_masks, masks, boxes),
        tuple(f"{what}, rule {rule}" for rule in RULES for what in ("sizes", "texts")),
    )


def mask_runs(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    """By both rules; masks of noise have more runs than are kept."""
    masks, boxes, image, thresholds = _to_paste(scene, dtype)

    def both(function: Callable[..., tuple[Tensor, Tensor]], masks: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            part for rule, threshold in thresholds.items() for part in function(masks, boxes, image, threshold, rule)
        )

    return Problem(
        {"masks": masks, "boxes": boxes},
        lambda masks, boxes: both(kernels.mask_runs, masks, boxes),
        lambda masks, boxes: both(peers.mask_runs, masks, boxes),
        tuple(f"{what}, rule {rule}" for rule in RULES for what in ("runs", "counts")),
    )


def rasterize_polygons(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    """Words of bits."""
    image = scene.pyramid.height, scene.pyramid.width
    return Problem(
        polygons(scene, dtype),
        lambda **inputs: kernels.rasterize_polygons(kernels.Polygons(**inputs, height=image[0], width=image[1])).bits,
        lambda **inputs: peers.pack_masks(peers.rasterize_polygons(**inputs, height=image[0], width=image[1])),
        ("bits",),
        exact=True,
    )


def pack_masks(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    return Problem(
        {"masks": 6 * scene.masks},  # whatever is not 0 is 1
        lambda masks: kernels.pack_masks(masks).bits,
        peers.pack_masks,
        ("bits",),
        exact=True,
    )


def unpack_masks(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    width = scene.pyramid.width
    return Problem(
        {"bits": peers.pack_masks(scene.masks)},
        lambda bits: kernels.unpack_masks(kernels.PackedMasks(bits, width)),
        lambda bits: peers.unpack_masks(bits, width),
        ("masks",),
        exact=True,
    )


def polygons(scene: Scene, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors of `Polygons`, with vertices that the dtype has, in float32 at least: there are none of 16 bits."""
    vertices, part_offsets, instance_offsets = scene.polygons
    rounded = vertices.to(dtype).to(torch.promote_types(dtype, torch.float32))
    return {"vertices": rounded, "part_offsets": part_offsets, "instance_offsets": instance_offsets}


def _to_paste(scene: Scene, dtype: torch.dtype) -> tuple[Tensor, Tensor, tuple[int, int], dict[Rule, float]]:
    """Masks, boxes, the image's size, and by rule a threshold that no probability is so near that rounding decides."""
    boxes = scene.regions[:100, 1:]
    if scene.boxes == "degenerate":  # without width or height there is nothing at a pixel's centre, but for rounding
        boxes = boxes[((boxes[:, 2:] - boxes[:, :2]).abs() > 0.1).all(dim=1)]
    if scene.boxes == "boundaries":  # a box that is whole pixels when grown is cut by rounding, in torchvision too
        boxes = boxes + 0.3
    masks = scene.uniform(len(boxes), scene.mask_side, scene.mask_side, seed=6).to(dtype)
    image = scene.pyramid.height, scene.pyramid.width
    thresholds: dict[Rule, float] = {}
    with kernels.use("eager" if scene.full else "reference"):
        for rule in RULES:
            thresholds[rule] = largest_gap(kernels.paste_masks(masks.double(), boxes.double(), image, None, rule))
    return masks, boxes, image, thresholds


def _texts(encoded: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([[*each["size"], len(each["counts"])] for each in encoded], dtype=torch.int64).view(-1, 3)
    return sizes, torch.tensor(list(b"".join(each["counts"] for each in encoded)), dtype=torch.uint8)

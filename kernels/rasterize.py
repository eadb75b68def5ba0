"""Polygons to masks, pixel for pixel as pycocotools has them."""

from typing import Any

import torch
from torch import Tensor

from kernels.checks import check_values
from kernels.dispatch import asked_for, run, values_may_be_read
from kernels.masks import WORD, PackedMasks, Polygons, check_polygons

_FARTHEST = 50e6  # vertices: fifths of a pixel are counted in 32 bits


def rasterize_polygons(polygons: Polygons) -> PackedMasks:
    """The masks of polygons, equal in every pixel to those of pycocotools (`frPyObjects`, `merge`, `decode`).

    On a GPU without a wait for it, and with a unit for float64, in which pycocotools' rule is defined.

    Args:
        polygons: see `Polygons`. A part of fewer than three vertices has no inside. On a GPU values are not asked for;
            offsets and vertices out of range are moved into it.

    Raises:
        ValueError: `polygons` holds something of the wrong shape, dtype, device or range.
    """
    check_polygons("polygons", polygons)
    bits, _ = rasterized(polygons, True, asked_for())
    return PackedMasks(bits, polygons.width)


def rasterized(polygons: Polygons, whole: bool, implementation: str) -> tuple[Tensor, Tensor]:
    """Words of bits, see `PackedMasks`, and the extents [G, 4] int32 of each mask: left, top, and past right, bottom.

    Unless `whole`, a GPU writes only the words that meet an extent, and the others may hold anything.
    """
    vertices, part_offsets, instance_offsets, height, width = polygons
    result: tuple[Tensor, Tensor] = _rasterize(
        vertices.detach(), part_offsets, instance_offsets, height, width, whole, implementation
    )
    return result


@torch.library.custom_op("mrcnn::rasterize", mutates_args=())
def _rasterize(
    vertices: Tensor,
    part_offsets: Tensor,
    instance_offsets: Tensor,
    height: int,
    width: int,
    whole: bool,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    if values_may_be_read(vertices, implementation):
        check_values("polygons.vertices", vertices, -_FARTHEST, _FARTHEST)
        _check_offsets(part_offsets, "part_offsets", vertices.shape[0])
        _check_offsets(instance_offsets, "instance_offsets", part_offsets.shape[0] - 1)
    arguments = (vertices, part_offsets, instance_offsets, height, width, whole)
    bits, extents = run(implementation, "rasterize", "rasterize", vertices.device, *arguments)
    return bits, extents


def _check_offsets(offsets: Tensor, name: str, last: int) -> None:
    """Only values tell."""
    if offsets[0] != 0 or offsets[-1] != last or bool((offsets.diff() < 0).any()):
        raise ValueError(f"polygons.{name} is {offsets.tolist()}; it must rise from 0 to {last}")


@_rasterize.register_fake
def _(vertices: Tensor, part_offsets: Tensor, instance_offsets: Tensor, height: int, width: int, *_: Any) -> Any:
    number = instance_offsets.shape[0] - 1
    bits = vertices.new_empty((number, height, (width + WORD - 1) // WORD), dtype=torch.int32)
    return bits, vertices.new_empty((number, 4), dtype=torch.int32)

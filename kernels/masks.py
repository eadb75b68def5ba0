"""Ground truth masks in little room: a bit a pixel, or polygons."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

WORD = 32  # pixels


class PackedMasks(NamedTuple):
    """Masks with a bit a pixel, in an eighth of the bytes.

    Attributes:
        bits: [G, H, ceil(W / 32)] int32. Pixel x of a row is bit x % 32 of its word x // 32: in memory, bit x % 8 of
            byte x // 8, as numpy's `packbits(..., bitorder="little")` has it. Bits from `width` on are 0.
        width: W.
    """

    bits: Tensor
    width: int


class Polygons(NamedTuple):
    """Instances as polygons, an instance being the union of its parts.

    Attributes:
        vertices: [P, 2] x and y in pixels, float32 or float64; within 50 million of 0.
        part_offsets: [parts + 1] int64; part i has the vertices from part_offsets[i] up to part_offsets[i + 1].
        instance_offsets: [G + 1] int64; instance g has the parts from instance_offsets[g] up to
            instance_offsets[g + 1].
        height, width: of the image.
    """

    vertices: Tensor
    part_offsets: Tensor
    instance_offsets: Tensor
    height: int
    width: int


def pack_masks(masks: Tensor) -> PackedMasks:
    """Packs masks [G, H, W], uint8 or bool; whatever is not 0 is 1.

    Raises:
        ValueError: `masks` has the wrong shape or dtype.
    """
    if masks.ndim != 3 or masks.dtype not in (torch.uint8, torch.bool):
        raise ValueError(f"masks is {tuple(masks.shape)} in {masks.dtype}; it must be G x H x W in uint8 or bool")
    number, height, width = masks.shape
    words = -(-width // WORD)
    if words == 0:
        return PackedMasks(masks.new_zeros((number, height, 0), dtype=torch.int32), width)
    whole = masks.new_zeros((number, height, words * WORD), dtype=torch.uint8)
    whole[..., :width] = masks != 0
    value = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=masks.device)
    parts = (whole.view(number, height, words * WORD // 8, 8) * value).sum(dim=3, dtype=torch.uint8)
    return PackedMasks(parts.view(torch.int32), width)


def unpack_masks(packed: PackedMasks) -> Tensor:
    """The masks [G, H, W], uint8, that `pack_masks` packed."""
    return unpacked_words(packed.bits)[..., : packed.width]


def unpacked_words(bits: Tensor) -> Tensor:
    """The pixels [..., 32 words] in uint8 of words [..., words]."""
    parts = bits.contiguous().view(torch.uint8)
    shift = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (torch.bitwise_right_shift(parts[..., None], shift) & 1).flatten(-2)


def polygons_from_coco(segmentations: Sequence[Sequence[Sequence[float]]], height: int, width: int) -> Polygons:
    """COCO's polygons, for each instance a list of parts x1, y1, x2, y2, ..., as tensors on the CPU in float64."""
    parts = [part for instance in segmentations for part in instance]
    vertices = torch.tensor([value for part in parts for value in part], dtype=torch.float64).view(-1, 2)
    return Polygons(
        vertices,
        _offsets([len(part) // 2 for part in parts]),
        _offsets([len(instance) for instance in segmentations]),
        height,
        width,
    )


def _offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)


def check_masks(masks: Tensor | PackedMasks | Polygons, device: torch.device, name: str = "gt_masks") -> None:
    """
    Raises:
        ValueError: a tensor of `masks` has the wrong shape, dtype or device.
    """
    tensors: tuple[Tensor, ...]
    if isinstance(masks, Polygons):
        _check_polygons(masks, name)
        tensors = masks[:3]
    elif isinstance(masks, PackedMasks):
        bits, width = masks
        if bits.ndim != 3 or bits.dtype != torch.int32 or bits.shape[2] != -(-width // WORD):
            raise ValueError(
                f"{name}.bits is {tuple(bits.shape)} in {bits.dtype}; it must be G x H x ceil(width / 32) in int32, "
                f"and the width is {width}"
            )
        tensors = (bits,)
    else:
        if masks.ndim != 3 or masks.dtype not in (torch.uint8, torch.bool):
            raise ValueError(
                f"{name} is {tuple(masks.shape)} in {masks.dtype}; it must be G x H x W in uint8 or bool, or "
                "PackedMasks, or Polygons"
            )
        tensors = (masks,)
    for tensor in tensors:
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}; it must be on {device}, as the rest")


def _check_polygons(polygons: Polygons, name: str) -> None:
    vertices = polygons.vertices
    if vertices.ndim != 2 or vertices.shape[1] != 2 or vertices.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name}.vertices is {tuple(vertices.shape)} in {vertices.dtype}; it must be P x 2 in float32 or float64"
        )
    for field in ("part_offsets", "instance_offsets"):
        value = getattr(polygons, field)
        if value.ndim != 1 or value.shape[0] < 1 or value.dtype != torch.int64:
            raise ValueError(
                f"{name}.{field} is {tuple(value.shape)} in {value.dtype}; it must be a vector in int64, its first 0"
            )
    if polygons.height < 0 or polygons.width < 0:
        raise ValueError(f"{name} is for {polygons.height} x {polygons.width} pixels; neither may be negative")

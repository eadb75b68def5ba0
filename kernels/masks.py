"""Ground truth masks in little room: a bit a pixel, or polygons."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.checks import INDEX, check_tensor, check_whole, is_list

WORD = 32  # pixels
_PIXELS = (torch.uint8, torch.bool)


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
    check_tensor("masks", masks, ("G", "H", "W"), dtypes=_PIXELS)
    number, height, width = masks.shape
    words = -(-width // WORD)
    if words == 0:
        return PackedMasks(masks.new_zeros((number, height, 0), dtype=torch.int32), width)
    whole = masks.new_zeros((number, height, words * WORD), dtype=torch.uint8)
    whole[..., :width] = masks != 0
    value = 1 << torch.arange(8, dtype=torch.uint8, device=masks.device)  # made there: a copy from the host would wait
    parts = (whole.view(number, height, words * WORD // 8, 8) * value).sum(dim=3, dtype=torch.uint8)
    return PackedMasks(parts.view(torch.int32), width)


def unpack_masks(packed: PackedMasks) -> Tensor:
    """The masks [G, H, W], uint8, that `pack_masks` packed.

    Raises:
        ValueError: `packed` is no `PackedMasks`, or of the wrong shape, dtype or width.
    """
    if not isinstance(packed, PackedMasks):
        raise ValueError(f"packed is of kind {type(packed).__name__}; it must be PackedMasks")
    _check_packed("packed", packed, 0)
    return unpacked_words(packed.bits)[..., : packed.width]


def unpacked_words(bits: Tensor) -> Tensor:
    """The pixels [..., 32 words] in uint8 of words [..., words]."""
    parts = bits.contiguous().view(torch.uint8)
    shift = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (torch.bitwise_right_shift(parts[..., None], shift) & 1).flatten(-2)


def polygons_from_coco(segmentations: Sequence[Sequence[Sequence[float]]], height: int, width: int) -> Polygons:
    """COCO's polygons, for each instance a list of parts x1, y1, x2, y2, ..., as tensors on the CPU in float64.

    Raises:
        ValueError: an instance is no list of parts, as a run-length encoding, or a part no even number of coordinates.
    """
    for name, size in (("height", height), ("width", width)):
        check_whole(name, size, 0)
    parts = []
    for number, instance in enumerate(segmentations):
        if not is_list(instance):
            raise ValueError(f"segmentations[{number}] is {instance!r:.80}; it must be a list of polygons")
        parts += [_part(part, f"segmentations[{number}][{place}]") for place, part in enumerate(instance)]
    return Polygons(
        torch.cat([torch.zeros((0, 2), dtype=torch.float64, device="cpu"), *parts]),
        _offsets([len(part) for part in parts]),
        _offsets([len(instance) for instance in segmentations]),
        height,
        width,
    )


def _part(part: Any, name: str) -> Tensor:
    """Its vertices [n, 2]."""
    try:
        numbers = torch.as_tensor(part, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.zeros((), device="cpu")
    if numbers.ndim != 1 or len(numbers) % 2:
        raise ValueError(f"{name} is {part!r:.80}; it must be x1, y1, x2, y2, ..., an even number of coordinates")
    return numbers.view(-1, 2)


def _offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int64, device="cpu").cumsum(0)


def check_masks(name: str, masks: Any, device: torch.device) -> None:
    """Masks to sample in any of their forms, which have a pixel at least."""
    if isinstance(masks, Polygons):
        check_polygons(name, masks, 1, device)
    elif isinstance(masks, PackedMasks):
        _check_packed(name, masks, 1, device)
    else:
        if not isinstance(masks, Tensor):
            kind = type(masks).__name__
            raise ValueError(f"{name} is of kind {kind}; it must be a tensor, PackedMasks or Polygons")
        check_tensor(name, masks, ("G", "H", "W"), dtypes=_PIXELS, device=device, filled=("H", "W"))


def _check_packed(name: str, packed: PackedMasks, least: int, device: torch.device | None = None) -> None:
    check_whole(f"{name}.width", packed.width, least)
    shape = ("G", "H", -(-packed.width // WORD))
    check_tensor(
        f"{name}.bits", packed.bits, shape, dtypes=(torch.int32,), device=device, filled=("H",) if least else ()
    )


def check_polygons(name: str, polygons: Polygons, least: int = 0, device: torch.device | None = None) -> None:
    """Polygons in an image of at least so many rows and columns; on one device if none is given."""
    if not isinstance(polygons, Polygons):
        raise ValueError(f"{name} is of kind {type(polygons).__name__}; it must be Polygons")
    vertices = polygons.vertices
    check_tensor(f"{name}.vertices", vertices, ("P", 2), dtypes=(torch.float32, torch.float64), device=device)
    for field in ("part_offsets", "instance_offsets"):
        offsets = getattr(polygons, field)
        check_tensor(f"{name}.{field}", offsets, ("n",), dtypes=INDEX, device=vertices.device, filled=("n",))
    for field in ("height", "width"):
        check_whole(f"{name}.{field}", getattr(polygons, field), least)

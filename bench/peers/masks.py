"""What torchvision, PyTorch, pycocotools and numpy give where `kernels` has an operation on masks of an image."""

from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.models.detection.roi_heads import paste_masks_in_image

WORD = 32


def paste_masks(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float | None, rule: str
) -> Tensor:
    """torchvision's `paste_masks_in_image`, or `grid_sample` at the centres of pixels as Detectron2 uses it."""
    usable = torch.isfinite(boxes).all(dim=1)
    pasted = masks.new_zeros((len(masks), *image_size))
    if bool(usable.any()):
        paste = _paste_by_integer_box if rule == "torchvision" else _paste_by_pixel_centers
        pasted[usable] = paste(masks[usable], boxes[usable], image_size)
    if threshold is None:
        return pasted
    return pasted > threshold if rule == "torchvision" else pasted >= threshold


def _paste_by_integer_box(masks: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    pasted: Tensor = paste_masks_in_image(masks[:, None], boxes, image_size)[:, 0]
    return pasted


def _paste_by_pixel_centers(masks: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    left, top, right, bottom = boxes[:, :, None].unbind(dim=1)
    y = (torch.arange(image_size[0], dtype=boxes.dtype) + 0.5 - top) / (bottom - top) * 2 - 1
    x = (torch.arange(image_size[1], dtype=boxes.dtype) + 0.5 - left) / (right - left) * 2 - 1
    shape = (len(boxes), *image_size)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def encode_masks(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float, rule: str
) -> list[dict[str, Any]]:
    """pycocotools' encoding of the pasted masks."""
    pasted = paste_masks(masks, boxes, image_size, threshold, rule).numpy()
    return [coco_mask.encode(np.asfortranarray(each, dtype=np.uint8)) for each in pasted]


def mask_runs(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float, rule: str
) -> tuple[Tensor, Tensor]:
    """The runs in that encoding, of which 2 x width + 1 are kept, and how many there are."""
    every = [_runs(each["counts"]) for each in encode_masks(masks, boxes, image_size, threshold, rule)]
    runs = torch.zeros((len(masks), 2 * image_size[1] + 1), dtype=torch.int32)
    for row, lengths in zip(runs, every, strict=True):
        kept = lengths[: len(row)]
        row[: len(kept)] = torch.tensor(kept, dtype=torch.int32)
    return runs, torch.tensor([len(lengths) for lengths in every], dtype=torch.int64)


def _runs(text: bytes) -> list[int]:
    """COCO's text read back: groups of five bits, lowest first, the last with a sign; differences from the fourth."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        group = character - 48
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs


def rasterize_polygons(
    vertices: Tensor, part_offsets: Tensor, instance_offsets: Tensor, height: int, width: int
) -> Tensor:
    """pycocotools' masks [G, H, W], uint8, of polygons with three vertices or more."""
    corners, parts, instances = vertices.double().numpy(), part_offsets.tolist(), instance_offsets.tolist()
    masks = torch.zeros((len(instances) - 1, height, width), dtype=torch.uint8)
    for mask, first, stop in zip(masks, instances, instances[1:], strict=False):
        drawn = [corners[parts[part] : parts[part + 1]].ravel().tolist() for part in range(first, stop)]
        together = coco_mask.merge(coco_mask.frPyObjects(drawn, height, width))
        mask.copy_(torch.from_numpy(coco_mask.decode(together)))
    return masks


def pack_masks(masks: Tensor) -> Tensor:
    """numpy's bits, of rows filled up to whole words [G, H, ceil(W / 32)], int32."""
    filled = np.pad(masks.numpy(), ((0, 0), (0, 0), (0, -masks.shape[2] % WORD)))
    parts = np.packbits(filled, axis=2, bitorder="little")
    return torch.from_numpy(parts.view(np.int32))


def unpack_masks(bits: Tensor, width: int) -> Tensor:
    pixels = np.unpackbits(bits.contiguous().view(torch.uint8).numpy(), axis=2, bitorder="little", count=width)
    return torch.from_numpy(pixels)

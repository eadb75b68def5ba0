"""Masks pasted into the image: bilinear resizing is separable, so each box is two small matrix products.

Only the pixels of a box inside the image are computed.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

_FAR = 1e15  # a box with a coordinate beyond, or with a NaN, is not pasted


def paste_masks(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float | None, rule: str
) -> Tensor:
    """See `kernels.paste_masks`. masks: [N, M, M], boxes: [N, 4]; [N, H, W]."""
    compute = torch.promote_types(masks.dtype, torch.float32)
    dtype = compute if threshold is None else torch.bool
    shape = (masks.shape[0], *image_size)
    if rule == "centers" and threshold == 0:
        pasted = torch.ones(shape, dtype=dtype, device=masks.device)
    else:
        pasted = _zeros(shape, dtype, masks.device)
    for index, row, column, values in values_in_boxes(masks, boxes, image_size, rule):
        inside = pasted[index, row : row + values.shape[0], column : column + values.shape[1]]
        if threshold is None:
            inside.copy_(values)
        elif rule == "torchvision":
            torch.gt(values, threshold, out=inside)
        else:
            torch.ge(values, threshold, out=inside)
    return pasted


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros which on a CPU the operating system provides when touched, as PyTorch's own are not: boxes are few."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(shape, dtype=torch.empty(0, dtype=dtype, device="cpu").numpy().dtype))


def values_in_boxes(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], rule: str
) -> Iterator[tuple[int, int, int, Tensor]]:
    """Of each mask that is pasted: its index, first row and column on the image, and its values there [h, w]."""
    compute = torch.promote_types(masks.dtype, torch.float32)
    masks = masks.to(compute)
    # As torchvision, which cuts boxes to integers in their own precision.
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32) if rule == "torchvision" else compute)
    usable = (boxes.abs() < _FAR).all(dim=1)
    if rule == "torchvision":
        masks = pad(masks, (1, 1, 1, 1))
        boxes = _whole_pixels(torch.where(usable[:, None], boxes, 0.0), masks.shape[-1])
        usable &= (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    else:
        usable &= (boxes[:, 2:] != boxes[:, :2]).all(dim=1)
    for index in torch.nonzero(usable).flatten().tolist():
        left, top, right, bottom = boxes[index].tolist()
        first_row, rows = _axis_weights(top, bottom, image_size[0], masks, rule)
        first_column, columns = _axis_weights(left, right, image_size[1], masks, rule)
        yield index, first_row, first_column, rows @ masks[index] @ columns.t()


def _whole_pixels(boxes: Tensor, padded_size: int) -> Tensor:
    """Boxes made larger about their centres by the padding of the mask, then truncated: x1, y1, x2 + 1, y2 + 1."""
    center = (boxes[:, :2] + boxes[:, 2:]) * 0.5
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * (padded_size / (padded_size - 2))
    return torch.cat([(center - half).trunc(), (center + half).trunc() + 1], dim=1)


def _axis_weights(start: float, end: float, image_size: int, masks: Tensor, rule: str) -> tuple[int, Tensor]:
    """First pixel of the image that a box reaches along an axis, and the weights [pixels, M] of the mask's pixels."""
    size = masks.shape[-1]
    # By pixel centres, a mask's border pixels fade out over half their width beyond the box.
    margin = 0.0 if rule == "torchvision" else abs(end - start) / size
    low = min(max(int(min(start, end) - margin), 0), image_size)
    high = max(min(int(max(start, end) + margin) + 1, image_size), low)
    if rule == "torchvision":
        high = max(min(int(end), image_size), low)
    pixels = torch.arange(low, high, dtype=masks.dtype, device=masks.device)
    at = (pixels + 0.5 - start) * (size / (end - start)) - 0.5
    if rule == "torchvision":
        at = at.clamp(0, size - 1)
    mask_pixels = torch.arange(size, dtype=masks.dtype, device=masks.device)
    return low, (1 - (at[:, None] - mask_pixels).abs()).clamp_(min=0)

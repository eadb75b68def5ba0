"""Predicted masks resized into their boxes on the image (Mask R-CNN, section 3.1, inference).

Every pixel of the result is written once. A program whose tile of the image does not touch its box only
writes zeros; the others sample the mask bilinearly, at positions that one of two rules gives:

- "torchvision": the mask with a border of one zero is resized (pixel centres aligned) to the box grown by
  (M + 2) / M and cut to integers, corners included;
- "centers": the mask is sampled at the centres of the image's pixels, zero outside it, as in Detectron2.

Boxes are computed without fused multiply-adds, so that they are cut to the same integers as elsewhere.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import divide, item_and_block


def prune_spills(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Without tiles of 16 rows and more for masks in float16, which spill."""
    most = 8 if arguments["masks_ptr"].dtype == torch.float16 else 32
    return [config for config in configs if config.kwargs["BLOCK_H"] <= most]


@tuning.tuned(
    configs=[
        triton.Config({"BLOCK_H": height, "BLOCK_W": width}, num_warps=warps)
        for height, width, warps in [
            (8, 128, 4),
            (4, 256, 4),
            (16, 128, 8),
            (16, 64, 4),
            (32, 32, 4),
            (2, 512, 4),
        ]
    ],
    key=["SIZE", "CENTERS", "THRESHOLD", "masks_bucket", "image_bucket"],
    prune=prune_spills,
)
@triton.jit(do_not_specialize=["height", "width", "masks_bucket", "image_bucket"])
def _paste_kernel(
    masks_ptr,  # [N, SIZE, SIZE]
    boxes_ptr,  # [N, 4] x1, y1, x2, y2
    out_ptr,  # [N, height, width]
    height,
    width,
    threshold: tl.float64,
    masks_bucket,
    image_bucket,
    SIZE: tl.constexpr,
    CENTERS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Program (mask, tile of the image)."""
    dtype: tl.constexpr = tl.float64 if masks_ptr.dtype.element_ty == tl.float64 else tl.float32
    tiles_across = tl.cdiv(width, BLOCK_W)
    mask, tile = item_and_block(tl.cdiv(height, BLOCK_H) * tiles_across)
    y_tile = tile // tiles_across * BLOCK_H
    x_tile = tile % tiles_across * BLOCK_W
    x1, y1, x2, y2 = load_box(boxes_ptr + mask * 4)
    y, x = y_tile + tl.arange(0, BLOCK_H), x_tile + tl.arange(0, BLOCK_W)
    value = tl.zeros((BLOCK_H, BLOCK_W), dtype)
    limit = 1e15
    if (tl.abs(x1) < limit) & (tl.abs(y1) < limit) & (tl.abs(x2) < limit) & (tl.abs(y2) < limit):
        if CENTERS:
            row, first_y, last_y = center_positions(y, y1, y2, SIZE, dtype)
            column, first_x, last_x = center_positions(x, x1, x2, SIZE, dtype)
        else:
            row, first_y, last_y = resized_positions(y, y1, y2, SIZE, dtype)
            column, first_x, last_x = resized_positions(x, x1, x2, SIZE, dtype)
        touched = (first_y < y_tile + BLOCK_H) & (last_y >= y_tile) & (first_x < x_tile + BLOCK_W) & (last_x >= x_tile)
        if touched:
            inside_y = (y >= first_y) & (y <= last_y) & (y < height)
            inside_x = (x >= first_x) & (x <= last_x) & (x < width)
            value = bilinear(
                masks_ptr + mask * (SIZE * SIZE), row, column, inside_y, inside_x, SIZE, 0 if CENTERS else 1, dtype
            )
    out = out_ptr + (mask * height + y)[:, None] * width + x[None, :]
    inside = (y < height)[:, None] & (x < width)[None, :]
    if THRESHOLD:
        limit = tl.full((), threshold, dtype)
        result = value >= limit if CENTERS else value > limit
        tl.store(out, result.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(out, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def load_box(ptr):
    """x1, y1, x2, y2."""
    return _widened(tl.load(ptr)), _widened(tl.load(ptr + 1)), _widened(tl.load(ptr + 2)), _widened(tl.load(ptr + 3))


@triton.jit
def _widened(corner):
    """In float32 at least: half precision has no room for what is computed of it."""
    return corner.to(tl.float64 if corner.dtype == tl.float64 else tl.float32)


@triton.jit
def resized_positions(pixel, low, high, SIZE: tl.constexpr, dtype: tl.constexpr):
    """Positions on the bordered mask by torchvision's rule, and the first and last pixel of the box."""
    half = (high - low) * 0.5 * tl.full((), (SIZE + 2) / SIZE, low.dtype)
    center = (high + low) * 0.5
    first = (center - half).to(tl.int64)
    last = (center + half).to(tl.int64)
    length = tl.maximum(last - first + 1, 1)
    scale = divide(tl.full((), SIZE + 2, dtype), length.to(dtype))
    return tl.maximum(((pixel - first).to(dtype) + 0.5) * scale - 0.5, 0.0), first, last


@triton.jit
def center_positions(pixel, low, high, SIZE: tl.constexpr, dtype: tl.constexpr):
    """Positions of pixel centres on the mask, and the first and last pixel that can have a value."""
    low, high = low.to(dtype), high.to(dtype)
    length = high - low
    normalized = divide(pixel + 0.5 - low, tl.where(length == 0, 1.0, length)) * 2.0 - 1.0
    position = ((normalized + 1.0) * SIZE - 1.0) * 0.5
    reach = tl.abs(length) * (0.5 / SIZE) + 1.0
    first = tl.floor(tl.minimum(low, high) - reach).to(tl.int64)
    last = tl.ceil(tl.maximum(low, high) + reach).to(tl.int64)
    return position, first, tl.where(length == 0, first - 1, last)


@triton.jit
def bilinear(mask, row, column, inside_y, inside_x, SIZE: tl.constexpr, BORDER: tl.constexpr, dtype: tl.constexpr):
    """The mask, with a border of zeros, at rows x columns; zero beyond. Sums are in the order of each rule's oracle."""
    # Positions that do not matter could be too large for an integer.
    row = tl.where(inside_y, tl.minimum(tl.maximum(row, -2.0), SIZE + 2.0), -2.0)
    column = tl.where(inside_x, tl.minimum(tl.maximum(column, -2.0), SIZE + 2.0), -2.0)
    top, left = tl.floor(row), tl.floor(column)
    upper, lower = ((top + 1.0) - row)[:, None], (row - top)[:, None]
    before, after = ((left + 1.0) - column)[None, :], (column - left)[None, :]
    y, x = top.to(tl.int32) - BORDER, left.to(tl.int32) - BORDER
    nw, ne = _cell(mask, y, x, SIZE, dtype), _cell(mask, y, x + 1, SIZE, dtype)
    sw, se = _cell(mask, y + 1, x, SIZE, dtype), _cell(mask, y + 1, x + 1, SIZE, dtype)
    if BORDER:
        value = upper * (before * nw + after * ne) + lower * (before * sw + after * se)
    else:
        value = upper * before * nw + upper * after * ne + lower * before * sw + lower * after * se
    return value


@triton.jit
def _cell(mask, y, x, SIZE: tl.constexpr, dtype: tl.constexpr):
    held = ((y >= 0) & (y < SIZE))[:, None] & ((x >= 0) & (x < SIZE))[None, :]
    return tl.load(mask + y[:, None] * SIZE + x[None, :], mask=held, other=0.0).to(dtype)


def paste_masks(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float | None, rule: str
) -> Tensor:
    """See `kernels.paste_masks`. masks: [N, M, M], boxes: [N, 4], result: [N, *image_size]."""
    number, size, _ = masks.shape
    height, width = image_size
    dtype = torch.promote_types(masks.dtype, torch.float32) if threshold is None else torch.bool
    out = masks.new_empty((number, height, width), dtype=dtype)
    if out.numel() == 0:
        return out
    with tuning.on_device_of(masks):
        tuning.launch(
            _paste_kernel,
            lambda meta: (number * triton.cdiv(height, meta["BLOCK_H"]) * triton.cdiv(width, meta["BLOCK_W"]),),
            (masks.contiguous(), boxes.contiguous(), out.view(torch.uint8) if threshold is not None else out),
            height=height,
            width=width,
            threshold=0.0 if threshold is None else float(threshold),
            masks_bucket=tuning.bucket(number),
            image_bucket=tuning.bucket(height * width),
            SIZE=size,
            CENTERS=rule == "centers",
            THRESHOLD=threshold is not None,
            enable_fp_fusion=False,
        )
    return out

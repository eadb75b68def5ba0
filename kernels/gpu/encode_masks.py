"""Run lengths of pasted masks (COCO's column-major encoding), looking at the pixels of each box only.

An edge is a pixel that differs from the one before it, counted down the columns; runs lie between edges. Three kernels:

1. a program walks some columns of one mask from the top of the box to its bottom and counts the edges of each column;
2. the same walk again; edges before a column are the sum over the columns left of it, so each edge knows its place;
3. differences of neighbouring edges are the runs.

Two walks cost less than memory for the pixels. They are one kernel, so that both see the same bits, which are those of
`paste_masks`: positions and sums are computed by its functions, without fused multiply-adds.

Rows are taken BLOCK_H at a time. The pixels of a column become the bits of a word, and an edge is a bit that differs
from the one below it; the last bit goes over to the next word. The falling edge of a column is at the row after its
last pixel; if that is the first row of the next column (the box is as high as the image), and inside, there is none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import item_and_block
from kernels.gpu.paste_masks import bilinear, center_positions, load_box, resized_positions

_RUNS = 1024  # that a program of the last kernel makes


def prune_spills(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Only one warp for masks in float16: of several a thread spills."""
    most = 1 if arguments["masks_ptr"].dtype == torch.float16 else 4
    return [config for config in configs if config.num_warps <= most]


@tuning.tuned(
    configs=[
        triton.Config({"BLOCK_H": height, "BLOCK_W": width}, num_warps=warps)
        for height, width, warps in [(8, 32, 1), (8, 64, 2), (8, 128, 4), (4, 32, 1)]
    ],
    key=["SIZE", "CENTERS", "WRITE", "masks_bucket", "image_bucket"],
    prune=prune_spills,
)
@triton.jit(do_not_specialize=["height", "width", "capacity", "masks_bucket", "image_bucket"])
def _edges_kernel(
    masks_ptr,  # [N, SIZE, SIZE]
    boxes_ptr,  # [N, 4] x1, y1, x2, y2
    of_column_ptr,  # [N, width] the number of edges: written, or read if WRITE
    edges_ptr,  # [N, capacity] written if WRITE
    height,
    width,
    capacity,
    threshold: tl.float64,
    masks_bucket,
    image_bucket,
    SIZE: tl.constexpr,
    CENTERS: tl.constexpr,
    EVERYWHERE: tl.constexpr,  # the threshold is one that pixels outside the box pass
    WRITE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Program (mask, BLOCK_W columns)."""
    dtype: tl.constexpr = tl.float64 if masks_ptr.dtype.element_ty == tl.float64 else tl.float32
    mask, block = item_and_block(tl.cdiv(width, BLOCK_W))
    x_tile = block * BLOCK_W
    x = x_tile + tl.arange(0, BLOCK_W)
    x1, y1, x2, y2, usable = _load_box(boxes_ptr + mask * 4)
    image = (height, width, threshold)
    box = (x1, y1, x2, y2)
    values = masks_ptr + mask * (SIZE * SIZE)
    if EVERYWHERE:
        top, bottom, left, right = 0, height - 1, 0, width - 1
    else:
        first_y, last_y, first_x, last_x = _reach(box, SIZE, CENTERS, dtype)
        top, bottom = _within(first_y, height), _within(last_y + 1, height) - 1
        left, right = _within(first_x, width), _within(last_x + 1, width) - 1
        if not usable:
            bottom = top - 1
    touched = (left < x_tile + BLOCK_W) & (right >= x_tile) & (top <= bottom)
    of_column = of_column_ptr + mask * width
    count = tl.zeros((BLOCK_W,), tl.int32)
    if WRITE:
        # Most programs have no edge and are done.
        own = tl.load(of_column + x, mask=x < width, other=0)
        if tl.sum(own, axis=0) == 0:
            touched = False
        count = tl.cumsum(own, axis=0) - own
        for first in range(left // BLOCK_W * BLOCK_W, tl.where(touched, x_tile, 0), BLOCK_W):
            count += tl.sum(tl.load(of_column + first + tl.arange(0, BLOCK_W)), axis=0)
    if touched:
        # Whether the pixel before the first row is inside and, as this row too, goes on; the same at the other end.
        carry = tl.zeros((BLOCK_W,), tl.uint32)
        goes_on = (bottom == height - 1) & (x == width - 1)
        if (top == 0) & (bottom == height - 1):
            one = tl.arange(0, 1)
            start = _inside(values, box, image, one, x, SIZE, CENTERS, EVERYWHERE, dtype)
            before = _inside(values, box, image, one + (height - 1), x - 1, SIZE, CENTERS, EVERYWHERE, dtype)
            after = _inside(values, box, image, one, x + 1, SIZE, CENTERS, EVERYWHERE, dtype)
            carry = tl.max((start & before).to(tl.int32), axis=0).to(tl.uint32)
            goes_on = goes_on | (tl.max(after.to(tl.int32), axis=0) > 0)
        row = tl.arange(0, BLOCK_H)
        bit = row.to(tl.uint32)[:, None]
        for y_tile in range(top, bottom + 2, BLOCK_H):
            y = y_tile + row
            inside = _inside(values, box, image, y, x, SIZE, CENTERS, EVERYWHERE, dtype)
            word = tl.sum(inside.to(tl.uint32) << bit, axis=0)
            changed = word ^ ((word << 1) | carry)
            carry = (word >> (BLOCK_H - 1)) & 1
            edge = (((changed[None, :] >> bit) & 1) != 0) & ~((y == bottom + 1)[:, None] & goes_on[None, :])
            number = edge.to(tl.int32)
            if WRITE:
                place = count[None, :] + tl.cumsum(number, axis=0) - number
                edges = edges_ptr + mask * capacity + place
                tl.store(edges, x[None, :] * height + y[:, None], mask=edge & (place < capacity))
            count += tl.sum(number, axis=0)
    if not WRITE:
        tl.store(of_column + x, count, mask=x < width)


@triton.jit
def _load_box(ptr):
    """x1, y1, x2, y2, and whether all are finite and nothing overflows; if not, a box without area."""
    x1, y1, x2, y2 = load_box(ptr)
    limit = 1e15
    usable = (tl.abs(x1) < limit) & (tl.abs(y1) < limit) & (tl.abs(x2) < limit) & (tl.abs(y2) < limit)
    return (
        tl.where(usable, x1, 0.0),
        tl.where(usable, y1, 0.0),
        tl.where(usable, x2, 0.0),
        tl.where(usable, y2, 0.0),
        usable,
    )


@triton.jit
def _reach(box, SIZE: tl.constexpr, CENTERS: tl.constexpr, dtype: tl.constexpr):
    """First and last row, first and last column that the mask can reach, anywhere on or off the image."""
    x1, y1, x2, y2 = box
    if CENTERS:
        _, first_y, last_y = center_positions(0, y1, y2, SIZE, dtype)
        _, first_x, last_x = center_positions(0, x1, x2, SIZE, dtype)
    else:
        _, first_y, last_y = resized_positions(0, y1, y2, SIZE, dtype)
        _, first_x, last_x = resized_positions(0, x1, x2, SIZE, dtype)
    return first_y, last_y, first_x, last_x


@triton.jit
def _within(place, extent):
    return tl.minimum(tl.maximum(place, 0), extent).to(tl.int32)


@triton.jit
def _inside(
    values, box, image, y, x, SIZE: tl.constexpr, CENTERS: tl.constexpr, EVERYWHERE: tl.constexpr, dtype: tl.constexpr
):
    """Whether the pixels of rows y and columns x are of the image and in the mask [len(y), len(x)]."""
    x1, y1, x2, y2 = box
    height, width, threshold = image
    if CENTERS:
        row, first_y, last_y = center_positions(y, y1, y2, SIZE, dtype)
        column, first_x, last_x = center_positions(x, x1, x2, SIZE, dtype)
    else:
        row, first_y, last_y = resized_positions(y, y1, y2, SIZE, dtype)
        column, first_x, last_x = resized_positions(x, x1, x2, SIZE, dtype)
    on_image = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None, :]
    inside_y = (y >= first_y) & (y <= last_y)
    inside_x = (x >= first_x) & (x <= last_x)
    value = bilinear(values, row, column, inside_y, inside_x, SIZE, 0 if CENTERS else 1, dtype)
    limit = tl.full((), threshold, dtype)
    return on_image & (value >= limit if CENTERS else value > limit)


@triton.jit(do_not_specialize=["height", "width", "capacity"])
def _runs_kernel(
    of_column_ptr,  # [N, width]
    edges_ptr,  # [N, capacity]
    runs_ptr,  # [N, capacity] the result
    counts_ptr,  # [N] the number of runs
    height,
    width,
    capacity,
    BLOCK: tl.constexpr,
):
    """Program (mask, BLOCK runs)."""
    mask, block = item_and_block(tl.cdiv(capacity, BLOCK))
    total = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, width, BLOCK):
        x = first + tl.arange(0, BLOCK)
        total += tl.load(of_column_ptr + mask * width + x, mask=x < width, other=0)
    edges = tl.sum(total, axis=0)
    run = block * BLOCK + tl.arange(0, BLOCK)
    there = (run <= edges) & (run < capacity)
    place = edges_ptr + mask * capacity + run
    start = tl.load(place - 1, mask=there & (run > 0), other=0)
    end = tl.load(place, mask=there & (run < edges), other=0)
    end = tl.where(run < edges, end, height * width)
    tl.store(runs_ptr + mask * capacity + run, tl.where(there, end - start, 0), mask=run < capacity)
    if block == 0:
        tl.store(counts_ptr + mask, (edges + 1).to(tl.int64))


def mask_runs(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float, rule: str, capacity: int
) -> tuple[Tensor, Tensor]:
    """See `kernels.mask_runs`. masks: [N, M, M], boxes: [N, 4]; runs [N, capacity] and counts [N]."""
    number, size, _ = masks.shape
    height, width = image_size
    runs = masks.new_empty((number, capacity), dtype=torch.int32)
    counts = masks.new_empty((number,), dtype=torch.int64)
    if number == 0:
        return runs, counts
    of_column = masks.new_empty((number, width), dtype=torch.int32)
    edges = masks.new_empty((number, capacity), dtype=torch.int32)
    arguments = {
        "height": height,
        "width": width,
        "capacity": capacity,
        "threshold": float(threshold),
        "masks_bucket": tuning.bucket(number),
        "image_bucket": tuning.bucket(height * width),
        "SIZE": size,
        "CENTERS": rule == "centers",
        "EVERYWHERE": rule == "centers" and threshold == 0,
        "enable_fp_fusion": False,
    }
    tensors = (masks.contiguous(), boxes.contiguous(), of_column, edges)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (number * triton.cdiv(width, meta["BLOCK_W"]),)

    with tuning.on_device_of(masks):
        tuning.launch(_edges_kernel, grid, tensors, **arguments, WRITE=False)
        tuning.launch(_edges_kernel, grid, tensors, **arguments, WRITE=True)
        tuning.launch(
            _runs_kernel,
            (number * triton.cdiv(capacity, _RUNS),),
            (of_column, edges, runs, counts),
            height=height,
            width=width,
            capacity=capacity,
            BLOCK=_RUNS,
        )
    return runs, counts

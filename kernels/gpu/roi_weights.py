"""The weights of every RoI on the pixels of its map, made once for all channels.

RoIAlign is separable (`kernels.gpu.language`), so that a RoI is described by what its bins give to rows and what
they give to columns: per axis a matrix [bins, pixels] that is zero but for a band. Only the band is stored, the
weight of (bin, pixel) at pixel + SKEW * bin: as the bins of a RoI follow one another, two of them share at most
a few pixels, and the skew keeps these apart. An axis takes no more than its pixels plus SKEW for each bin, so the
size of the table is known beforehand for any RoIs, and a RoI touches only what its window covers.

How many samples a bin has no longer shows: adaptive sampling costs the gather nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import sample, share_of_sample, tent

QUAD = 4  # a bin's weights are stored from and up to a multiple of as many pixels
SKEW = 8  # bins share up to 2 pixels, 3 with rounding; up to 8 when widened to quads
BLOCK = 32  # pixels that a program makes at a time


@dataclass(frozen=True)
class RoiWeights:
    """What bins give to pixels, bins counted from the left and the top even where the RoI's run backwards.

    Attributes:
        weight: [K, rows + columns + SKEW (PH + PW)] the weight of bin b for row y at y + SKEW b, divided by the number
            of samples, and after rows + SKEW PH the same for columns, not divided. Written only in the window, and
            for each bin from and to multiples of QUAD around the pixels that it reaches.
        reach: [K, 2 (rows + columns) + 2] first bin and last bin of each row, of each column: those from the first bin
            of pixel p to the last of q are the ones that reach p to q. First > last: none. Written only in the window.
            In the end 1 if the RoI's bins run forwards along y, and along x, else 0.
        rows, columns: of the largest map, in whole tiles.
    """

    weight: Tensor
    reach: Tensor
    rows: int
    columns: int


def roi_weights(
    grid: Tensor, window: Tensor, shapes: Sequence[tuple[int, int, int, int]], pooling: Mapping[str, Any]
) -> RoiWeights:
    """Makes the weights.

    Args:
        grid, window: see `TileBuckets`.
        shapes: of the levels.
        pooling: POOLED_H, POOLED_W and RATIO.
    """
    num_rois, tile = grid.shape[0], 2 * QUAD
    rows = triton.cdiv(max(shape[2] for shape in shapes), tile) * tile
    columns = triton.cdiv(max(shape[3] for shape in shapes), tile) * tile
    bins = pooling["POOLED_H"], pooling["POOLED_W"]
    weight = grid.new_empty((num_rois, rows + columns + SKEW * sum(bins)))
    reach = grid.new_empty((num_rois, 2 * (rows + columns) + 2), dtype=torch.int32)
    block = triton.next_power_of_2(max(bins))
    tuning.launch(
        _weights_kernel,
        (num_rois, 2),
        (grid, window, weight, reach),
        num_rois=num_rois,
        rows=rows,
        columns=columns,
        **pooling,
        QUAD=QUAD,
        SKEW=SKEW,
        BLOCK_B=block,
        BLOCK_P=BLOCK,
        num_warps=min(max(block * grid.element_size() // 64, 1), 8),
        enable_fp_fusion=False,  # whether a sample lies on the map is decided as in the forward pass
    )
    return RoiWeights(weight, reach, rows, columns)


@triton.jit(do_not_specialize=["num_rois", "rows", "columns"])
def _weights_kernel(
    grid_ptr,  # [K, 2, 5] start, bin, samples, step and extent along y, then along x (see `sampling_grid`)
    window_ptr,  # [4, K] first and last row, first and last column that the RoI reaches; first > last: none
    weight_ptr,  # [K, weight_pitch] bands along y, then along x
    reach_ptr,  # [K, reach_pitch] see `RoiWeights`
    num_rois,
    rows,
    columns,
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    RATIO: tl.constexpr,
    QUAD: tl.constexpr,
    SKEW: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    roi = tl.program_id(0).to(tl.int64)
    grid_ptr += roi * 10
    window_ptr += roi
    weight_ptr += roi * (rows + columns + SKEW * (POOLED_H + POOLED_W))
    reach_ptr += roi * (2 * (rows + columns) + 2)
    y_grid = _load_grid(grid_ptr)
    x_grid = _load_grid(grid_ptr + 5)
    tl.store(reach_ptr + 2 * (rows + columns), (y_grid[1] >= 0).to(tl.int32))
    tl.store(reach_ptr + 2 * (rows + columns) + 1, (x_grid[1] >= 0).to(tl.int32))
    share = share_of_sample(y_grid, x_grid)
    if tl.program_id(1) == 0:
        _axis(
            y_grid, window_ptr, num_rois, weight_ptr, reach_ptr, rows, share,
            POOLED_H, RATIO, QUAD, SKEW, BLOCK_B, BLOCK_P,
        )  # fmt: skip
    else:
        weight_ptr += rows + SKEW * POOLED_H
        reach_ptr += 2 * rows
        one = tl.full((), 1.0, share.dtype)
        _axis(
            x_grid, window_ptr + 2 * num_rois, num_rois, weight_ptr, reach_ptr, columns, one,
            POOLED_W, RATIO, QUAD, SKEW, BLOCK_B, BLOCK_P,
        )  # fmt: skip


@triton.jit
def _load_grid(pointer):
    return tl.load(pointer), tl.load(pointer + 1), tl.load(pointer + 2), tl.load(pointer + 3), tl.load(pointer + 4)


@triton.jit
def _axis(
    grid, window_ptr, num_rois, weight_ptr, reach_ptr, pixels, share,
    BINS: tl.constexpr, RATIO: tl.constexpr, QUAD: tl.constexpr, SKEW: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    start, bin, samples, step, extent = grid
    rank = tl.arange(0, BLOCK_B)[:, None]
    index = tl.where(bin < 0, BINS - 1 - rank, rank)
    a = start + index * bin + 0.5 * step
    b = start + index * bin + (samples - 0.5) * step
    low, high = tl.minimum(a, b), tl.maximum(a, b)
    last_pixel = extent - 1.0
    first = tl.where(low > extent, extent, tl.minimum(tl.maximum(low, 0.0), last_pixel)).to(tl.int32)
    last = tl.where(high < -1.0, -2.0, tl.minimum(tl.maximum(high, 0.0), last_pixel)).to(tl.int32) + 1
    used = rank < BINS
    begin = tl.load(window_ptr) // (2 * QUAD) * (2 * QUAD)
    end = tl.minimum(tl.load(window_ptr + num_rois) // (2 * QUAD) * (2 * QUAD) + 2 * QUAD, pixels)
    for chunk in range(begin, end, BLOCK_P):
        pixel = chunk + tl.arange(0, BLOCK_P)[None, :]
        weight = share * _weight(pixel, grid, index, RATIO)
        stored = used & (pixel >= first // QUAD * QUAD) & (pixel < last // QUAD * QUAD + QUAD) & (pixel < end)
        stored = stored & (last >= 0)
        tl.store(weight_ptr + pixel + SKEW * rank, weight, mask=stored)
        before = tl.sum((used & (last < pixel)).to(tl.int32), 0)
        begun = tl.sum((used & (first <= pixel)).to(tl.int32), 0)
        place = chunk + tl.arange(0, BLOCK_P)
        tl.store(reach_ptr + place, before, mask=place < end)
        tl.store(reach_ptr + pixels + place, begun - 1, mask=place < end)


@triton.jit
def _weight(pixel, grid, index, RATIO: tl.constexpr):
    """What the samples of bin `index` give to `pixel`, along one axis."""
    start, bin, samples, step, _ = grid
    weight = tl.zeros_like(pixel + index + start)
    if RATIO > 0:
        for number in range(RATIO):
            position, counts = sample(grid, index, number)
            weight += tent(pixel, position, counts)
    else:
        # Two pixels' length of samples, from the first that can reach the pixel.
        first = tl.floor((pixel - 1.0 - start - index * bin) / step - 0.5)
        first = tl.minimum(tl.maximum(first, 0.0), samples)
        for offset in range(tl.minimum(2.0 / step + 3.0, samples).to(tl.int32)):
            position, counts = sample(grid, index, first + offset)
            weight += tent(pixel, position, counts & (first + offset < samples))
    return weight

"""RoIs grouped by the (level, image) that they lie on, on the device and at sizes that the host knows."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.roi_geometry import load_roi

BLOCK = 128


def bucket_rois(
    rois: Tensor, levels: dict[str, Any], pooling: dict[str, Any], aligned: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Groups RoIs for a gather over pixels, without waiting for the device.

    Args:
        rois: [K, 5], contiguous.
        levels: see `level_tables`.
        pooling: POOLED_H, POOLED_W and RATIO.
        aligned: as in `roi_align`.

    Returns:
        order [K]: RoIs by level, then image, then index; those without a gradient last.
        begin [LEVELS * N + 1]: where in order each (level, image) begins.
        window [K, 4]: first and last row, first and last column that each RoI reaches; first > last: none.
        grid [K, 8]: start, bin, samples and step along y, then along x, of each RoI (see `sampling_grid`).
    """
    num_rois = rois.shape[0]
    segment = rois.new_empty(num_rois, dtype=torch.int32)
    window = rois.new_empty((num_rois, 4), dtype=torch.int32)
    grid = rois.new_empty((num_rois, 8))
    tuning.launch(
        _window_kernel,
        (triton.cdiv(num_rois, BLOCK),),
        (rois, segment, window, grid),
        num_rois=num_rois,
        **levels,
        **pooling,
        ALIGNED=aligned,
        BLOCK=BLOCK,
    )
    segment, order = torch.sort(segment, stable=True)
    segments = levels["LEVELS"] * levels["num_images"] + 1
    begin = torch.searchsorted(segment, torch.arange(segments, dtype=torch.int32, device=rois.device))
    return order, begin, window, grid


@triton.jit(do_not_specialize=["num_images", "num_rois"])
def _window_kernel(
    rois_ptr,  # [K, 5]
    segment_ptr,  # [K] level * N + image, or LEVELS * N where there is no gradient
    window_ptr,  # [K, 4] first and last row, first and last column that the RoI reaches; first > last: none
    grid_ptr,  # [K, 8] start, bin, samples and step along y, then along x (see `sampling_grid`)
    levels,  # heights, widths, scales and least areas of boxes, see `level_tables`
    num_images,
    num_rois,
    EXACT_SCALES: tl.constexpr,
    LEVELS: tl.constexpr,
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    RATIO: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program makes the keys, windows and sampling grids of BLOCK RoIs."""
    roi = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = roi < num_rois
    row = tl.where(inside, roi, 0).to(tl.int64)
    level, image, y_grid, x_grid = load_roi(
        rois_ptr, row, levels, num_images, EXACT_SCALES, LEVELS, POOLED_H, POOLED_W, RATIO, ALIGNED
    )
    segment = tl.where((image >= 0) & (y_grid[2] * x_grid[2] > 0), level * num_images + image, LEVELS * num_images)
    tl.store(segment_ptr + roi, segment, mask=inside)
    y_low, y_high = _reach(y_grid, POOLED_H)
    x_low, x_high = _reach(x_grid, POOLED_W)
    tl.store(window_ptr + row * 4, y_low, mask=inside)
    tl.store(window_ptr + row * 4 + 1, y_high, mask=inside)
    tl.store(window_ptr + row * 4 + 2, x_low, mask=inside)
    tl.store(window_ptr + row * 4 + 3, x_high, mask=inside)
    for i in tl.static_range(4):
        tl.store(grid_ptr + row * 8 + i, y_grid[i], mask=inside)
        tl.store(grid_ptr + row * 8 + 4 + i, x_grid[i], mask=inside)


@triton.jit
def _reach(grid, BINS: tl.constexpr):
    """First and last pixel along one axis to which the RoI's samples can give a weight."""
    start, bin, _, _, extent = grid
    size = bin * BINS
    low, high = tl.minimum(start, start + size), tl.maximum(start, start + size)
    outside = (high < -1.0) | (low > extent)
    first = tl.minimum(tl.maximum(low, 0.0), extent - 1.0).to(tl.int32)
    last = tl.minimum(tl.maximum(high, 0.0), extent - 1.0).to(tl.int32) + 1
    return first, tl.where(outside, -1, last)

"""Where a RoI lies on which pyramid level: what the forward and backward pass of RoIAlign share."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import finite, pick, sampling_grid


@triton.jit
def load_roi(
    rois_ptr,
    roi,
    levels,
    num_images,
    EXACT_SCALES: tl.constexpr,
    LEVELS: tl.constexpr,
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    RATIO: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Level, image and the sampling grids (see `sampling_grid`) along y and x of a RoI, or of a tensor of
    RoIs.

    A RoI that must give zeros (NaN, infinite, negative area where there are levels to choose from, no such
    image) is moved to where no sample counts; its image is -1.
    """
    heights, widths, scales, areas = levels
    index = tl.load(rois_ptr + roi * 5)
    x1 = tl.load(rois_ptr + roi * 5 + 1)
    y1 = tl.load(rois_ptr + roi * 5 + 2)
    x2 = tl.load(rois_ptr + roi * 5 + 3)
    y2 = tl.load(rois_ptr + roi * 5 + 4)
    usable = (index >= 0) & (index < num_images)
    usable = usable & finite(x1) & finite(y1) & finite(x2) & finite(y2) & finite(x2 - x1) & finite(y2 - y1)
    level = tl.zeros_like(index).to(tl.int32)
    if LEVELS > 1:
        area = (x2.to(tl.float32) - x1.to(tl.float32)) * (y2.to(tl.float32) - y1.to(tl.float32))
        usable = usable & (area >= 0)
        for i in tl.static_range(1, LEVELS):
            level += (area >= areas[i]).to(tl.int32)
    if EXACT_SCALES is not None:
        scale = tl.full((), EXACT_SCALES[0], tl.float64)
        for i in tl.static_range(1, LEVELS):
            scale = tl.where(level == i, tl.full((), EXACT_SCALES[i], tl.float64), scale)
    else:
        scale = pick(scales, level, LEVELS)
    height = pick(heights, level, LEVELS)
    width = pick(widths, level, LEVELS)
    y_grid = sampling_grid(y1, y2, scale, height, POOLED_H, RATIO, ALIGNED)
    x_grid = sampling_grid(x1, x2, scale, width, POOLED_W, RATIO, ALIGNED)
    image = tl.where(usable, index, -1.0).to(tl.int32)
    return level, image, _or_outside(usable, y_grid), _or_outside(usable, x_grid)


@triton.jit
def _or_outside(usable, grid):
    start, bin, samples, step, extent = grid
    start, bin = tl.where(usable, start, -1e9), tl.where(usable, bin, 1.0)
    return start, bin, tl.where(usable, samples, 1.0), tl.where(usable, step, 1.0), extent


def level_tables(
    shapes: Sequence[Sequence[int]],
    scales: Sequence[float],
    canonical_scale: float,
    canonical_level: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What `load_roi` asks to know of the levels, as keyword arguments, for RoIs of `dtype`.

    `levels` holds heights, widths, scales and the least areas of boxes, each a tuple over levels.

    Sizes travel as floats, since Triton compiles anew for every divisibility of an integer inside a tuple.
    Scales are arguments, as they may change from image to image, but float arguments are float32: float64,
    which is for checking, has them compiled in.
    """
    return {
        "levels": (
            tuple(float(shape[2]) for shape in shapes),
            tuple(float(shape[3]) for shape in shapes),
            tuple(scales),
            (0.0, *minimum_areas(tuple(scales), canonical_scale, canonical_level)),
        ),
        "num_images": shapes[0][0],
        "EXACT_SCALES": tuple(scales) if dtype == torch.float64 else None,
        "LEVELS": len(shapes),
    }


def map_bucket(shapes: Sequence[Sequence[int]]) -> int:
    """Of the pixels of all levels [N, C, H, W] and images: what is fastest on small maps need not be on large ones."""
    return tuning.bucket(sum(images * height * width for images, _, height, width in shapes))


@functools.lru_cache
def minimum_areas(scales: tuple[float, ...], canonical_scale: float, canonical_level: int) -> tuple[float, ...]:
    """The least float32 area of a box that goes to the second, third, ... level.

    floor(canonical_level + log2(sqrt(area) / canonical_scale) + 1e-6) (Feature Pyramid Networks, equation 1,
    with torchvision's 1e-6) grows with the area, so comparing areas is the same as evaluating it, and exact
    where a GPU's log2 is not. Found by bisection over the bits of positive floats, which are ordered as the
    floats are.
    """
    finest, coarsest = (-math.log2(scales[0]), -math.log2(scales[-1]))
    levels = torch.arange(1, len(scales), dtype=torch.float32, device="cpu") + int(finest)
    low = torch.zeros(len(scales) - 1, dtype=torch.int32, device="cpu")
    high = torch.full_like(low, 0x7F800000)  # infinity
    for _ in range(31):
        middle = low + (high - low) // 2
        reached = _level(middle.view(torch.float32), canonical_scale, canonical_level).clamp(max=coarsest) >= levels
        low, high = torch.where(reached, low, middle + 1), torch.where(reached, middle, high)
    return tuple(high.view(torch.float32).numpy().tolist())  # by numpy: this was on the host all along


def _level(area: Tensor, canonical_scale: float, canonical_level: int) -> Tensor:
    return torch.floor(canonical_level + torch.log2(torch.sqrt(area) / canonical_scale) + 1e-6)

"""RoIs grouped by the tile of the map that they reach, on the device and at sizes that the host knows.

A first kernel finds each RoI's (level, image), its sampling grid and the pixels that it can reach. A stable sort of K
keys brings the RoIs of a (level, image) together. A program for each tile then tests the RoIs of its own (level,
image) and keeps a bit for each, in a row of ceil(K / 32) words: room for any RoIs, of which a tile uses as many as
its (level, image) has. Nothing waits for the device, and nothing overflows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import bitwise_or
from kernels.gpu.roi_geometry import load_roi

BLOCK = 128  # RoIs of a program
TILE = 8  # rows and columns of a tile
GROUP = 32  # RoIs of a word of a tile's members
WORDS = 4  # that a program makes at a time


@dataclass(frozen=True)
class TileBuckets:
    """Which RoIs reach which tile. Tiles count level after level, image after image, row after row.

    Attributes:
        order: [K] RoIs by level, then image, then index; those without a gradient last.
        begin: [LEVELS * N + 1] where in `order` each (level, image) begins.
        place: [tiles, 8] level, image, first row, first column; first and last tile of the (level, image); its height
            and width in pixels.
        members: [tiles, words] bit i of word w is set if the RoI at begin + w * GROUP + i in `order` reaches the tile.
        window: [4, K] first and last row, first and last column that each RoI reaches; first > last: none.
        grid: [K, 10] start, bin, samples, step and extent along y, then along x, of each RoI (see `sampling_grid`).
    """

    order: Tensor
    begin: Tensor
    place: Tensor
    members: Tensor
    window: Tensor
    grid: Tensor


def count_tiles(shapes: Sequence[tuple[int, int, int, int]]) -> int:
    """Tiles of all levels and images."""
    return sum(images * triton.cdiv(height, TILE) * triton.cdiv(width, TILE) for images, _, height, width in shapes)


def bucket_rois(
    rois: Tensor, levels: Mapping[str, Any], tiles: int, pooling: Mapping[str, Any], aligned: bool
) -> TileBuckets:
    """Groups RoIs for a gather over pixels, without waiting for the device.

    Args:
        rois: [K, 5], contiguous.
        levels: see `level_tables`.
        tiles: see `count_tiles`.
        pooling: POOLED_H, POOLED_W and RATIO.
        aligned: as in `roi_align`.
    """
    num_rois = rois.shape[0]
    segment = rois.new_empty(num_rois, dtype=torch.int32)
    window = rois.new_empty((4, num_rois), dtype=torch.int32)
    grid = rois.new_empty((num_rois, 10))
    tuning.launch(
        _window_kernel,
        (triton.cdiv(num_rois, BLOCK),),
        (rois, segment, window, grid),
        num_rois=num_rois,
        **levels,
        **pooling,
        ALIGNED=aligned,
        BLOCK=BLOCK,
        enable_fp_fusion=False,  # the samples of a bin are counted as in the forward pass
    )
    segment, order = torch.sort(segment, stable=True)
    segments = levels["LEVELS"] * levels["num_images"] + 1
    begin = torch.searchsorted(segment, torch.arange(segments, dtype=torch.int32, device=rois.device))
    words = triton.cdiv(num_rois, GROUP)
    place = rois.new_empty((tiles, 8), dtype=torch.int32)
    members = rois.new_empty((tiles, words), dtype=torch.int32)
    tuning.launch(
        _tile_kernel,
        (tiles,),
        (order, begin, window, place, members),
        levels=levels["levels"],
        num_images=levels["num_images"],
        num_rois=num_rois,
        words=words,
        LEVELS=levels["LEVELS"],
        TILE=TILE,
        GROUP=GROUP,
        WORDS=WORDS,
        num_warps=1,
    )
    return TileBuckets(order, begin, place, members, window, grid)


@triton.jit(do_not_specialize=["num_images", "num_rois"])
def _window_kernel(
    rois_ptr,  # [K, 5]
    segment_ptr,  # [K] level * N + image, or LEVELS * N where there is no gradient
    window_ptr,  # [4, K] first and last row, first and last column that the RoI reaches; first > last: none
    grid_ptr,  # [K, 2, 5] start, bin, samples, step and extent along y, then along x (see `sampling_grid`)
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
    tl.store(window_ptr + row, y_low, mask=inside)
    tl.store(window_ptr + num_rois + row, y_high, mask=inside)
    tl.store(window_ptr + 2 * num_rois + row, x_low, mask=inside)
    tl.store(window_ptr + 3 * num_rois + row, x_high, mask=inside)
    for i in tl.static_range(5):
        tl.store(grid_ptr + row * 10 + i, y_grid[i], mask=inside)
        tl.store(grid_ptr + row * 10 + 5 + i, x_grid[i], mask=inside)


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


@triton.jit(do_not_specialize=["num_images", "num_rois", "words"])
def _tile_kernel(
    order_ptr,  # see `TileBuckets` for this and the next
    begin_ptr,
    window_ptr,  # of the RoIs
    place_ptr,  # of the tiles, see `TileBuckets`, and the next
    member_ptr,
    levels,  # as in `level_tables`
    num_images,
    num_rois,
    words,
    LEVELS: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Program finds the RoIs of a tile."""
    tile = tl.program_id(0)
    place = _place(tile, levels, num_images, LEVELS, TILE)
    for i in tl.static_range(8):
        tl.store(place_ptr + tile * 8 + i, place[i])
    level, image, y_tile, x_tile = place[0], place[1], place[2], place[3]
    member_ptr += tile.to(tl.int64) * words
    segment = level * num_images + image
    begin = tl.load(begin_ptr + segment).to(tl.int32)
    end = tl.load(begin_ptr + segment + 1).to(tl.int32)
    word = tl.arange(0, WORDS)
    lane = tl.arange(0, GROUP)[None, :]
    for group in range(0, end - begin, GROUP * WORDS):
        index = begin + group + word[:, None] * GROUP + lane
        member = index < end
        roi = tl.load(order_ptr + index, mask=member, other=0)
        hit = _meets(window_ptr + roi, num_rois, member, y_tile, TILE, x_tile, TILE)
        bits = tl.reduce(hit.to(tl.int32) << lane, 1, bitwise_or)
        tl.store(member_ptr + group // GROUP + word, bits, mask=begin + group + word * GROUP < end)


@triton.jit
def _meets(window, num_rois, member, y, ROWS: tl.constexpr, x, COLUMNS: tl.constexpr):
    """Whether the RoI whose window it is reaches any of the pixels from (y, x)."""
    hit = member & (tl.load(window, mask=member, other=0) < y + ROWS)
    hit = hit & (tl.load(window + num_rois, mask=member, other=-1) >= y)
    hit = hit & (tl.load(window + 2 * num_rois, mask=member, other=0) < x + COLUMNS)
    return hit & (tl.load(window + 3 * num_rois, mask=member, other=-1) >= x)


@triton.jit
def _place(tile, levels, num_images, LEVELS: tl.constexpr, TILE: tl.constexpr):
    """What `TileBuckets.place` says of a tile."""
    level = tl.zeros_like(tile)
    first = tl.zeros_like(tile)  # tile of the level
    height, width = tl.cast(levels[0][0], tl.int32), tl.cast(levels[1][0], tl.int32)
    tiles = tl.cdiv(height, TILE) * tl.cdiv(width, TILE)
    for i in tl.static_range(1, LEVELS):
        if (level == i - 1) & (tile - first >= num_images * tiles):
            level = tl.full((), i, tl.int32)
            first += num_images * tiles
            height, width = tl.cast(levels[0][i], tl.int32), tl.cast(levels[1][i], tl.int32)
            tiles = tl.cdiv(height, TILE) * tl.cdiv(width, TILE)
    image = (tile - first) // tiles
    first += image * tiles
    tile -= first
    across = tl.cdiv(width, TILE)
    return level, image, tile // across * TILE, tile % across * TILE, first, first + tiles - 1, height, width

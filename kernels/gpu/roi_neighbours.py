"""RoIAlign of several RoIs a program that cover much the same pixels, forward, for maps that are channels last.

Proposals crowd around objects, so that a pixel is read for dozens of them. A first kernel puts the RoIs in an order in
which neighbours overlap: by level, image and place, along a curve that keeps near what is near (Morton, 1966). A RoI's
place in it is the number of keys below its own, which needs no sort. Programs then take ROIS neighbours and walk over
all of them from left to right together, so that what one has read the others find in the L1 cache.

Neighbours take a step when any of them needs a new column, and the others wait: that costs instructions, and pays
where reading takes longest: 32-bit maps, whose windows are large beside the few bins that are written
(`kernels.gpu.roi_align` has figures).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import column_of_map, pick, pick_pointer, sample, sample_range, share_of_sample
from kernels.gpu.roi_geometry import load_roi, map_bucket

BLOCK = 32  # RoIs that a program puts in order
KEYS = 32  # that it compares with them at a time
MOST = 1 << 14  # RoIs; comparing all with all grows with the square, and costs half of what is saved here


def suits_neighbours(dtype: torch.dtype, num_rois: int, output_size: tuple[int, int], sampling_ratio: int) -> bool:
    """Whether several RoIs a program are the better form: see above, and each sample along x has a bit in 32."""
    height, width = output_size
    sampled = 0 < sampling_ratio <= 4 and sampling_ratio * width <= 32
    return dtype == torch.float32 and height <= 8 and sampled and num_rois <= MOST


def roi_align_neighbours(
    features: Sequence[Tensor],
    rois: Tensor,
    out: Tensor,
    levels: Mapping[str, Any],
    pooling: Mapping[str, Any],
    aligned: bool,
    wide: bool,
) -> None:
    """Writes the bins of RoIs.

    Args:
        features: of each level, channels last. rois: [K, 5], contiguous. out: [K, C, PH, PW], channels last.
        levels: see `level_tables`. pooling: POOLED_H, POOLED_W and RATIO.
        wide: whether a map of an image has 2 ** 31 values or more.
    """
    num_rois, channels = out.shape[:2]
    order, place, grid = order_rois(rois, levels, pooling, aligned)
    tuning.launch(
        _neighbours_kernel,
        lambda meta: (triton.cdiv(num_rois, meta["ROIS"]), triton.cdiv(channels, meta["BLOCK_C"])),
        (tuple(features), order, place, grid, out),
        num_rois=num_rois,
        rois_bucket=tuning.bucket(num_rois),
        map_bucket=map_bucket([feature.shape for feature in features]),
        bins=pooling["POOLED_W"],
        LEVELS=levels["LEVELS"],
        CHANNELS=channels,
        **pooling,
        WIDE=wide,
        BLOCK_H=triton.next_power_of_2(pooling["POOLED_H"]),
        enable_fp_fusion=False,
    )


def order_rois(
    rois: Tensor, levels: Mapping[str, Any], pooling: Mapping[str, Any], aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """RoIs [K] in an order in which neighbours overlap, int32, and how each is sampled: see `_order_kernel`."""
    num_rois = rois.shape[0]
    order = rois.new_empty(num_rois, dtype=torch.int32)
    place = rois.new_empty((num_rois, 4), dtype=torch.int32)
    grid = rois.new_empty((num_rois, 10))
    tuning.launch(
        _order_kernel,
        (triton.cdiv(num_rois, BLOCK),),
        (rois, order, place, grid),
        num_rois=num_rois,
        **levels,
        **pooling,
        ALIGNED=aligned,
        BLOCK=BLOCK,
        KEYS=KEYS,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return order, place, grid


@triton.jit(do_not_specialize=["num_images", "num_rois"])
def _order_kernel(
    rois_ptr,  # [K, 5] image index, x1, y1, x2, y2
    order_ptr,  # [K] RoIs by level, image and place
    place_ptr,  # [K, 4] level, image (-1: gives zeros), and a bit for each sample along x, bin after bin: in the first
    # word for those that need a column which the sample before does not, in the second for those that need two
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
    KEYS: tl.constexpr,
):
    """Program puts BLOCK RoIs in their place among all, and says how they are sampled."""
    roi = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = roi < num_rois
    row = tl.where(inside, roi, 0).to(tl.int64)
    level, image, y_grid, x_grid = load_roi(
        rois_ptr, row, levels, num_images, EXACT_SCALES, LEVELS, POOLED_H, POOLED_W, RATIO, ALIGNED
    )
    one, two = tl.zeros_like(level), tl.zeros_like(level)
    for bin_x in range(POOLED_W):
        for number in range(RATIO):
            columns = _new_columns(x_grid, bin_x, number, RATIO)
            bit = bin_x * RATIO + number
            one |= (columns >= 1).to(tl.int32) << bit
            two |= (columns >= 2).to(tl.int32) << bit
    tl.store(place_ptr + row * 4, level, mask=inside)
    tl.store(place_ptr + row * 4 + 1, image, mask=inside)
    tl.store(place_ptr + row * 4 + 2, one, mask=inside)
    tl.store(place_ptr + row * 4 + 3, two, mask=inside)
    for i in tl.static_range(5):
        tl.store(grid_ptr + row * 10 + i, y_grid[i], mask=inside)
        tl.store(grid_ptr + row * 10 + 5 + i, x_grid[i], mask=inside)

    key = _key(rois_ptr + row * 5, levels, num_images, LEVELS)[:, None]
    lower = tl.zeros((BLOCK, KEYS), tl.int32)
    for start in range(0, num_rois, KEYS):
        other = (start + tl.arange(0, KEYS))[None, :]
        other_row = tl.where(other < num_rois, other, 0).to(tl.int64)
        other_key = _key(rois_ptr + other_row * 5, levels, num_images, LEVELS)
        before = (other_key < key) | ((other_key == key) & (other < roi[:, None]))
        lower += (before & (other < num_rois)).to(tl.int32)
    tl.store(order_ptr + tl.sum(lower, 1), roi, mask=inside)


@triton.jit
def _new_columns(grid, bin, number, RATIO: tl.constexpr):
    """How many of the two columns around a sample are not around the one before, if that counts; 0 if it does not."""
    position, counts = sample(grid, bin, number)
    first = number == 0
    before, counted = sample(grid, tl.where(first, bin - 1, bin), tl.where(first, RATIO, number) - 1)
    step = position.to(tl.int32) - before.to(tl.int32)
    held = counted & ((bin > 0) | (number > 0)) & (step >= 0) & (step < 2)
    return tl.where(counts, tl.where(held, step, 2), 0)


@triton.jit
def _key(roi, levels, num_images, LEVELS: tl.constexpr):
    """Level and image, as far as they go into 11 bits, and the place of the RoI's middle, 10 bits for each axis."""
    x1, y1, x2, y2 = tl.load(roi + 1), tl.load(roi + 2), tl.load(roi + 3), tl.load(roi + 4)
    area = (x2 - x1) * (y2 - y1)
    level = tl.zeros_like(area).to(tl.int32)
    for i in tl.static_range(1, LEVELS):
        level += (area >= levels[3][i]).to(tl.int32)
    scale = pick(levels[2], level, LEVELS)
    image = _within(tl.load(roi), num_images - 1)
    # Units of 4 pixels, as finer ones order no better.
    place = (
        _spread(_within((x1 + x2) * (0.125 * scale), 1023)) | _spread(_within((y1 + y2) * (0.125 * scale), 1023)) << 1
    )
    return tl.minimum(level * num_images + image, 2047) << 20 | place


@triton.jit
def _within(x, most):
    """x as an integer from 0 to `most`; 0 for NaN."""
    x = tl.where(x > 0, x, 0.0)
    return tl.where(x < most, x, most).to(tl.int32)


@triton.jit
def _spread(x):
    """10 bits with a zero bit between each two."""
    x = (x | (x << 8)) & 0x00FF00FF
    x = (x | (x << 4)) & 0x0F0F0F0F
    x = (x | (x << 2)) & 0x33333333
    return (x | (x << 1)) & 0x55555555


def prune_neighbours(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Of `tuning.within_channels`, those that hold 16 bytes of a tensor in a thread, which is one access, or else the
    nearest to it.
    """
    fitting = tuning.within_channels(configs, arguments)

    def misses(config: triton.Config) -> float:
        values = arguments["BLOCK_H"] * config.kwargs["ROIS"] * config.kwargs["BLOCK_C"]
        held = values * arguments["out_ptr"].element_size() / tuning.threads(config, arguments)
        return float(abs(held - 16))

    return [each for each in fitting if misses(each) == min(map(misses, fitting))]


@tuning.tuned(
    configs=[
        triton.Config({"ROIS": rois, "BLOCK_C": block}, num_warps=warps)
        for rois, block, warps in [
            *[(4, 32, 8), (2, 32, 4), (2, 64, 8), (4, 64, 16)],  # for 5 to 8 rows of bins
            *[(4, 32, 4), (2, 32, 2), (4, 32, 2), (2, 32, 1)],  # for 3 and 4, and for fewer
        ]
    ],
    key=["CHANNELS", "POOLED_H", "POOLED_W", "RATIO", "LEVELS", "rois_bucket", "map_bucket"],
    prune=prune_neighbours,
)
@triton.jit(do_not_specialize=["num_rois", "rois_bucket", "map_bucket", "bins"])
def _neighbours_kernel(
    features,  # per level [N, H_l, W_l, C]
    order_ptr,  # see `_order_kernel` for this and the next two
    place_ptr,
    grid_ptr,
    out_ptr,  # [K, PH, PW, C]
    num_rois,
    rois_bucket,
    map_bucket,
    bins,  # POOLED_W, where it must be no constant: the loop would be unrolled on AMD, and registers spilled
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    RATIO: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    ROIS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (ROIS neighbours, block of channels) makes all bins, [ROIS * BLOCK_H rows of bins, BLOCK_C] at a time."""
    first = tl.program_id(0) * ROIS
    levels_here, any_one, any_two = first * 0, first * 0, first * 0
    for i in tl.static_range(ROIS):
        if first + i < num_rois:
            place = place_ptr + tl.load(order_ptr + first + i) * 4
            levels_here |= 1 << tl.load(place)
            any_one |= tl.load(place + 2)
            any_two |= tl.load(place + 3)

    line = tl.arange(0, ROIS * BLOCK_H)
    rank, row = first + line // BLOCK_H, line % BLOCK_H
    inside = (rank < num_rois) & (row < POOLED_H)
    roi = tl.load(order_ptr + rank, mask=inside, other=0)
    place = place_ptr + roi * 4
    level, image, one, two = tl.load(place), tl.load(place + 1), tl.load(place + 2), tl.load(place + 3)
    grid = grid_ptr + roi * 10
    y_grid = tl.load(grid), tl.load(grid + 1), tl.load(grid + 2), tl.load(grid + 3), tl.load(grid + 4)
    x_grid = tl.load(grid + 5), tl.load(grid + 6), tl.load(grid + 7), tl.load(grid + 8), tl.load(grid + 9)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    rows, columns = y_grid[4].to(index_type), x_grid[4].to(index_type)
    of_image = (image.to(tl.int64) * (rows * columns * CHANNELS))[:, None] + channel
    y_first, y_stop = sample_range(y_grid, row, RATIO)
    share = share_of_sample(y_grid, x_grid)[:, None]
    dtype: tl.constexpr = grid_ptr.dtype.element_ty
    out = out_ptr + (roi.to(tl.int64) * POOLED_H + row)[:, None] * (POOLED_W * CHANNELS) + channel

    for each in range(LEVELS):  # nearly always one, so that the pointer to the map is a scalar
        if (levels_here >> each) & 1:
            feature = pick_pointer(features, each, LEVELS) + of_image
            used = (inside & (level == each))[:, None] & (channel < CHANNELS)
            left = tl.zeros((ROIS * BLOCK_H, BLOCK_C), dtype)  # the columns around the sample before
            right = tl.zeros((ROIS * BLOCK_H, BLOCK_C), dtype)
            for bin_x in range(bins):
                total = tl.zeros((ROIS * BLOCK_H, BLOCK_C), dtype)
                for number in range(RATIO):
                    bit = bin_x * RATIO + number
                    x, counts = sample(x_grid, bin_x, number)
                    column = x.to(tl.int32)
                    if (any_one >> bit) & 1:
                        fresh = ((one >> bit) & 1 != 0)[:, None]
                        left = tl.where(fresh, right, left)
                        if (any_two >> bit) & 1:
                            both = ((two >> bit) & 1 != 0)[:, None]
                            values = column_of_map(
                                feature + (column.to(index_type) * CHANNELS)[:, None], columns * CHANNELS, used & both,
                                row, y_grid, y_first, y_stop, RATIO, RATIO,
                            )  # fmt: skip
                            left = tl.where(both, values, left)
                        pixel = tl.minimum(column + 1, columns.to(tl.int32) - 1)
                        values = column_of_map(
                            feature + (pixel.to(index_type) * CHANNELS)[:, None], columns * CHANNELS, used & fresh,
                            row, y_grid, y_first, y_stop, RATIO, RATIO,
                        )  # fmt: skip
                        right = tl.where(fresh, values, right)
                    fraction = (x - column)[:, None]
                    sum_here = tl.fma(fraction, right, tl.fma(1.0 - fraction, left, total))
                    total = tl.where(counts[:, None], sum_here, total)
                tl.store(out + bin_x * CHANNELS, (total * share).to(out_ptr.dtype.element_ty), mask=used)

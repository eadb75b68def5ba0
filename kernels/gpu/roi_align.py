"""RoIAlign over all pyramid levels and images at once, forward.

A bin is the mean of bilinear samples (Mask R-CNN, section 3). Bilinear sampling on a regular grid is
separable (`kernels.gpu.language`): with y weights Wy and x weights Wx the bins of a RoI are Wy F Wx' /
samples.

Channels last: a program takes a RoI and a block of channels, one row of bins to a warp. It walks along x and
holds two neighbouring columns of the map, already summed along y, so that each column is read once per row of
bins, as rows of channels of 16 bytes a thread; there is no shared memory and no barrier.

Few bins of float32 maps, as the box head has: a program takes several RoIs that overlap and walks over them together
(`kernels.gpu.roi_neighbours`), so that L2 is asked once for what they share. Of 1,024 RoIs with 256 channels at 7x7
that lowers the bound of the virtual H100 from 63 to 43 us. Elsewhere the instructions of walking together outweigh it:
with two RoIs a program the bound rises from 96 to 112 us at 14x14, and from 31.4 to 33.1 us in bfloat16 at 7x7, where
half as much is read.

That each bin sums its own samples, as in torchvision, takes more instructions and more lines of the cache:
`python -m bench.kernel_figures.direct_sampling` has such kernels beside these. For the same RoIs the best of them has
1.6 times the bound of the separable form at 7x7 in float32, 1.3 times in bfloat16, and more than that at 14x14.

Contiguous maps: a warp takes a row of bins of a few channels. It reads the rows of the map, 32 neighbouring pixels
at a time, sums them along y, and each bin then gathers its columns from the lanes that hold them.

Where a multiplication and an addition are one is written down, and not left to the compiler, which decides
otherwise for other configurations: all give the same bits.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import column_of_map, pick_pointer, sample, sample_range, share_of_sample
from kernels.gpu.roi_align_backward import roi_align_backward as roi_align_backward
from kernels.gpu.roi_geometry import level_tables, load_roi, map_bucket
from kernels.gpu.roi_neighbours import roi_align_neighbours, suits_neighbours
from kernels.memory_format import empty_map

KEY = ["CHANNELS", "POOLED_H", "POOLED_W", "RATIO", "LEVELS", "rois_bucket", "map_bucket"]


def prune_rows_of_channels(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Of `tuning.within_channels`, those that read one or two lines of 128 bytes from a pixel, 16 bytes a thread at
    once, and hold at most 32 bytes of a tensor in a thread, 16 with adaptive sampling, as there are not registers for
    more. If there are none, those that read less of a pixel so, and if there are none, those that hold what is nearest
    to 16 bytes. Narrow blocks let more RoIs share an SM's cache.
    """
    size = arguments["out_ptr"].element_size()
    fitting = tuning.within_channels(configs, arguments)
    most = 32 if arguments["RATIO"] > 0 else 16

    def held(config: triton.Config) -> float:
        return float(arguments["BLOCK_H"] * config.kwargs["BLOCK_C"] * size / tuning.threads(config, arguments))

    suited = [each for each in fitting if each.kwargs["BLOCK_C"] * size <= 256 and 16 <= held(each) <= most]
    lines = [each for each in suited if each.kwargs["BLOCK_C"] * size >= 128]
    nearest = min(abs(held(each) - 16) for each in fitting)
    return lines or suited or [each for each in fitting if abs(held(each) - 16) == nearest]


@tuning.tuned(
    configs=[
        triton.Config({"BLOCK_C": block}, num_warps=warps)
        for block, warps in [(32, 2), (64, 2), (64, 4), (32, 1), (32, 4), (64, 1), (128, 4), (128, 8), (128, 1)]
    ],
    key=KEY,
    prune=prune_rows_of_channels,
)
@triton.jit(do_not_specialize=["num_images", "rois_bucket", "map_bucket"])
def _channels_last_kernel(
    features,  # per level [N, H_l, W_l, C]
    rois_ptr,  # [K, 5] image index, x1, y1, x2, y2
    out_ptr,  # [K, PH, PW, C]
    levels,  # heights, widths, scales and least areas of boxes, see `level_tables`
    num_images,
    rois_bucket,
    map_bucket,
    EXACT_SCALES: tl.constexpr,
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    RATIO: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (RoI, block of channels) makes all bins, [BLOCK_H rows of bins, BLOCK_C] at a time."""
    roi = tl.program_id(0).to(tl.int64)
    level, image, y_grid, x_grid = load_roi(
        rois_ptr, roi, levels, num_images, EXACT_SCALES, LEVELS, POOLED_H, POOLED_W, RATIO, ALIGNED
    )
    row = tl.arange(0, BLOCK_H)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    used = (row < POOLED_H)[:, None] & (channel < CHANNELS)
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    rows, columns = y_grid[4].to(index_type), x_grid[4].to(index_type)
    feature = pick_pointer(features, level, LEVELS) + image.to(tl.int64) * (rows * columns * CHANNELS) + channel
    y_first, y_stop = sample_range(y_grid, row, RATIO)
    y_count = tl.max(tl.where(row < POOLED_H, y_stop - y_first, 0)) if RATIO == 0 else RATIO
    dtype: tl.constexpr = rois_ptr.dtype.element_ty
    out = out_ptr + roi * (POOLED_H * POOLED_W * CHANNELS) + row[:, None] * (POOLED_W * CHANNELS) + channel

    held = tl.full((), -2, tl.int32)  # columns held and held + 1 are in left and right
    left = tl.zeros((BLOCK_H, BLOCK_C), dtype)
    right = tl.zeros((BLOCK_H, BLOCK_C), dtype)
    for bin_x in range(POOLED_W):
        total = tl.zeros((BLOCK_H, BLOCK_C), dtype)
        x_first, x_stop = sample_range(x_grid, bin_x, RATIO)
        for number in range(x_first, x_stop):
            x, counts = sample(x_grid, bin_x, number)
            if counts:
                column = x.to(tl.int32)
                missing = tl.where(column == held, column + 2, tl.where(column == held + 1, column + 1, column))
                while missing <= column + 1:
                    pixel = tl.minimum(missing, columns.to(tl.int32) - 1)
                    left = right
                    right = column_of_map(
                        feature + pixel.to(index_type) * CHANNELS,
                        columns * CHANNELS,
                        used,
                        row,
                        y_grid,
                        y_first,
                        y_stop,
                        y_count,
                        RATIO,
                    )
                    missing += 1
                held = column
                fraction = x - column
                total = tl.fma(fraction, right, tl.fma(1.0 - fraction, left, total))
        tl.store(
            out + bin_x * CHANNELS,
            (total * share_of_sample(y_grid, x_grid)).to(out_ptr.dtype.element_ty),
            mask=used,
        )


def prune_rows_of_pixels(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Of `tuning.within_channels`, with adaptive sampling those of at most 4 channels a warp and 4 warps, as there are
    not registers for more.
    """
    fitting = tuning.within_channels(configs, arguments)
    few = [each for each in fitting if each.kwargs["BLOCK_C"] <= min(4 * each.num_warps, 16)]
    return few if few and arguments["RATIO"] == 0 else fitting


@tuning.tuned(
    configs=[triton.Config({"BLOCK_C": block}, num_warps=warps) for block, warps in [(8, 1), (4, 1), (16, 4), (32, 8)]],
    key=KEY,
    prune=prune_rows_of_pixels,
)
@triton.jit(do_not_specialize=["num_images", "rois_bucket", "map_bucket"])
def _contiguous_kernel(
    features,  # per level [N, C, H_l, W_l]
    rois_ptr,  # [K, 5] image index, x1, y1, x2, y2
    out_ptr,  # [K, C, PH, PW]
    levels,  # heights, widths, scales and least areas of boxes, see `level_tables`
    num_images,
    rois_bucket,
    map_bucket,
    EXACT_SCALES: tl.constexpr,
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    RATIO: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (RoI, block of channels) makes all bins, [BLOCK_C, BLOCK_W], a row of bins, at a time."""
    roi = tl.program_id(0).to(tl.int64)
    level, image, y_grid, x_grid = load_roi(
        rois_ptr, roi, levels, num_images, EXACT_SCALES, LEVELS, POOLED_H, POOLED_W, RATIO, ALIGNED
    )
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    rows, columns = y_grid[4].to(index_type), x_grid[4].to(index_type)
    feature = pick_pointer(features, level, LEVELS) + image.to(tl.int64) * (rows * columns * CHANNELS)
    feature += channel.to(index_type) * (rows * columns)
    bin_x = tl.arange(0, BLOCK_W)[None, :]
    inside = bin_x < POOLED_W
    x_first, x_stop = sample_range(x_grid, bin_x, RATIO)
    x_count = tl.max(tl.where(inside, x_stop - x_first, 0)) if RATIO == 0 else RATIO
    dtype: tl.constexpr = rois_ptr.dtype.element_ty
    out = out_ptr + (roi * CHANNELS + channel) * (POOLED_H * POOLED_W) + bin_x

    first, last = _columns_sampled(x_grid, bin_x, inside, x_first, x_stop, x_count)
    for bin_y in range(POOLED_H):
        row = tl.full((1,), bin_y, tl.int32)
        y_first, y_stop = sample_range(y_grid, row, RATIO)
        y_count = tl.max(y_stop - y_first) if RATIO == 0 else RATIO
        total = tl.zeros((BLOCK_C, BLOCK_W), dtype)
        for start in range(first, last + 1, BLOCK_X):
            column = start + tl.arange(0, BLOCK_X)[None, :]
            line = column_of_map(
                feature + column,
                columns,
                (channel < CHANNELS) & (column <= last),
                row,
                y_grid,
                y_first,
                y_stop,
                y_count,
                RATIO,
            )
            for number in range(x_count):
                x, counts = sample(x_grid, bin_x, x_first + number)
                counts = counts & inside & (x_first + number < x_stop)
                left = x.to(tl.int32)
                fraction = x - left
                for corner in tl.static_range(2):
                    place = left + corner - start
                    held = counts & (place >= 0) & (place < BLOCK_X)
                    weight = tl.where(held, fraction if corner == 1 else 1.0 - fraction, 0.0)
                    place = tl.broadcast_to(tl.where(held, place, 0), (BLOCK_C, BLOCK_W))
                    total = tl.fma(tl.broadcast_to(weight, (BLOCK_C, BLOCK_W)), tl.gather(line, place, 1), total)
        tl.store(
            out + bin_y * POOLED_W,
            (total * share_of_sample(y_grid, x_grid)).to(out_ptr.dtype.element_ty),
            mask=inside & (channel < CHANNELS),
        )


@triton.jit
def _columns_sampled(x_grid, bin_x, inside, x_first, x_stop, x_count):
    """The first and the last column of the map that has a weight for these bins; last < first if there is none."""
    first, last = tl.full((), 2**30, tl.int32), tl.full((), -1, tl.int32)
    for number in range(x_count):
        x, counts = sample(x_grid, bin_x, x_first + number)
        counts = counts & inside & (x_first + number < x_stop)
        left = x.to(tl.int32)
        first = tl.minimum(first, tl.min(tl.where(counts, left, 2**30)))
        last = tl.maximum(last, tl.max(tl.where(counts, tl.where(x > left, left + 1, left), -1)))
    return first, last


def roi_align(
    features: list[Tensor],
    rois: Tensor,
    spatial_scales: list[float],
    output_size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> Tensor:
    """See `kernels.multiscale_roi_align`. features: [N, C, H, W] a level, rois: [K, 5]."""
    num_rois, channels, (height, width) = rois.shape[0], features[0].shape[1], output_size
    channels_last = not features[0].is_contiguous()
    out = empty_map(features[0], (num_rois, channels, height, width), channels_last)
    if out.numel() == 0:
        return out
    rois = rois.contiguous()
    levels = level_tables(
        [feature.shape for feature in features], spatial_scales, canonical_scale, canonical_level, rois.dtype
    )
    pooling = {"POOLED_H": height, "POOLED_W": width, "RATIO": max(sampling_ratio, 0)}
    wide = max(math.prod(feature.shape[1:]) for feature in features) >= 2**31
    arguments = {
        **levels,
        **pooling,
        "rois_bucket": tuning.bucket(num_rois),
        "map_bucket": map_bucket([feature.shape for feature in features]),
        "CHANNELS": channels,
        "ALIGNED": aligned,
        "WIDE": wide,
    }
    tensors = (tuple(features), rois, out)
    with tuning.on_device_of(rois):
        if channels_last and suits_neighbours(out.dtype, num_rois, output_size, sampling_ratio):
            roi_align_neighbours(features, rois, out, levels, pooling, aligned, wide)
        elif channels_last:
            tuning.launch(
                _channels_last_kernel,
                lambda meta: (num_rois, triton.cdiv(channels, meta["BLOCK_C"])),
                tensors,
                BLOCK_H=triton.next_power_of_2(height),
                enable_fp_fusion=False,
                **arguments,
            )
        else:
            tuning.launch(
                _contiguous_kernel,
                lambda meta: (num_rois, triton.cdiv(channels, meta["BLOCK_C"])),
                tensors,
                BLOCK_X=32,  # a warp's lanes, so that columns are exchanged within it; the same in all configurations
                BLOCK_W=triton.next_power_of_2(width),
                enable_fp_fusion=False,
                **arguments,
            )
    return out

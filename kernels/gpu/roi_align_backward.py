"""RoIAlign over all pyramid levels and images in one launch, backward, as a gather: no atomics, the same bits
each run.

The gradient of a pixel is the sum over RoIs and their bins of Wy[bin, y] Wx[bin, x] grad[bin] / samples, the
transpose of the forward pass. Each program owns a tile of pixels and a block of channels, goes through the
RoIs that reach the tile in the order of their index, adds in registers in the accumulator's precision, and
stores once in the gradient's dtype: tiles that no RoI reaches are stores of zeros, and nothing is cleared
before.

RoIs are bucketed on the device, at a size that is known beforehand: a first kernel finds each RoI's (level,
image), its sampling grid and the pixels that it can reach, a stable sort of K keys brings the RoIs of a
(level, image) together, and a program tests the RoIs of its own (level, image), 32 at a time. The sum for a
pixel does not depend on the tile's shape, nor therefore on the configuration.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import pick, pick_pointer, sample, share_of_sample, tent
from kernels.gpu.roi_buckets import bucket_rois
from kernels.gpu.roi_geometry import level_tables

GROUP = 32  # RoIs that a program tests at a time, a bit each


def prune_tiles(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Blocks of at most the channels there are, and the narrowest if all are wider.

    Contiguous maps take narrow blocks: what a warp stores goes through shared memory to become rows of
    pixels.
    """
    widest = min(triton.next_power_of_2(arguments["CHANNELS"]), 1024 if arguments["CHANNELS_LAST"] else 64)
    fitting = [config for config in configs if config.kwargs["BLOCK_C"] <= widest]
    return fitting or [min(configs, key=lambda config: config.kwargs["BLOCK_C"])]


@tuning.tuned(
    configs=[
        triton.Config({"TILE_H": height, "TILE_W": width, "BLOCK_C": block}, num_warps=warps)
        for height, width, block, warps in [
            (8, 8, 128, 8),
            (4, 8, 128, 4),
            (8, 4, 128, 8),
            (4, 8, 64, 4),
            (8, 8, 64, 8),
            (4, 8, 32, 4),
        ]
    ],
    key=["CHANNELS", "POOLED_H", "POOLED_W", "RATIO", "LEVELS", "CHANNELS_LAST", "rois_bucket"],
    prune=prune_tiles,
)
@triton.jit(do_not_specialize=["num_images", "rois_bucket"])
def _gather_kernel(
    grads,  # per level [N, C, H_l, W_l], contiguous or channels last: the result
    grad_ptr,  # [K, C, PH, PW] with the strides below
    order_ptr,  # [K] RoIs in the order of their segment, then of their index
    begin_ptr,  # [LEVELS * N + 1] where segments begin in order
    window_ptr,  # [K, 4]
    grid_ptr,  # [K, 8]
    levels,  # as in `level_tables`
    num_images,
    rois_bucket,
    stride_k,
    stride_c,
    stride_h,
    stride_w,
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    RATIO: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    GROUP: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (tile, block of channels) sums its [TILE_W, TILE_H, BLOCK_C], one row of pixels to a warp."""
    tile = tl.program_id(0)
    level = tl.zeros_like(tile)
    first_tile = tl.zeros_like(tile)
    past = tl.zeros_like(tile)
    for i in tl.static_range(LEVELS - 1):
        past += num_images * _tile_count(levels[0][i], levels[1][i], TILE_H, TILE_W)
        level += (tile >= past).to(tl.int32)
        first_tile = tl.where(tile >= past, past, first_tile)
    height = pick(levels[0], level, LEVELS).to(tl.int32)
    width = pick(levels[1], level, LEVELS).to(tl.int32)
    across = tl.cdiv(width, TILE_W)
    down = tl.cdiv(height, TILE_H)
    tile -= first_tile
    image = tile // (across * down)
    y_tile = (tile // across) % down * TILE_H
    x_tile = tile % across * TILE_W
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, None, :]

    y = y_tile + tl.arange(0, TILE_H)[None, :, None]
    x = x_tile + tl.arange(0, TILE_W)[:, None, None]
    total = tl.zeros((TILE_W, TILE_H, BLOCK_C), grid_ptr.dtype.element_ty)
    segment = level * num_images + image
    begin = tl.load(begin_ptr + segment).to(tl.int32)
    end = tl.load(begin_ptr + segment + 1).to(tl.int32)
    lane = tl.arange(0, GROUP)
    for group in range(begin, end, GROUP):
        member = group + lane < end
        window = window_ptr + tl.load(order_ptr + group + lane, mask=member, other=0) * 4
        hit = (tl.load(window, mask=member, other=0) < y_tile + TILE_H) & (
            tl.load(window + 1, mask=member, other=-1) >= y_tile
        )
        hit = hit & (tl.load(window + 2, mask=member, other=0) < x_tile + TILE_W)
        hit = hit & (tl.load(window + 3, mask=member, other=-1) >= x_tile)
        hits = tl.sum(tl.where(hit & member, tl.full((GROUP,), 1, tl.int64) << lane.to(tl.int64), 0), 0)
        while hits != 0:
            lowest = hits & -hits
            roi = tl.load(order_ptr + group + _log2(lowest))
            hits -= lowest
            source = grad_ptr + roi * stride_k + channel * stride_c
            total = _add_roi(
                total, y, x, x_tile, height, width, grid_ptr + roi * 8, source, stride_h, stride_w,
                channel < CHANNELS, POOLED_H, POOLED_W, RATIO,
            )  # fmt: skip

    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    plane = height.to(index_type) * width
    base = pick_pointer(grads, level, LEVELS) + image.to(tl.int64) * (plane * CHANNELS)
    if CHANNELS_LAST:
        out = base + (y * width + x).to(index_type) * CHANNELS + channel
    else:
        out = base + channel * plane + (y * width + x)
    mask = (y < height) & (x < width) & (channel < CHANNELS)
    tl.store(out, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _tile_count(height, width, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    return tl.cdiv(tl.cast(height, tl.int32), TILE_H) * tl.cdiv(tl.cast(width, tl.int32), TILE_W)


@triton.jit
def _add_roi(
    total, y, x, x_tile, height, width, grid_ptr, grad_ptr, stride_h, stride_w, used,
    POOLED_H: tl.constexpr, POOLED_W: tl.constexpr, RATIO: tl.constexpr,
):  # fmt: skip
    """total [TILE_W, TILE_H, BLOCK_C] plus what one RoI gives to it.

    y is [1, TILE_H, 1], x [TILE_W, 1, 1], grad_ptr [1, 1, BLOCK_C]: all have the layout of the total, so that
    nothing goes through shared memory. Most pixels are reached by at most 3 bins along y, whose weights stay
    in registers.
    """
    NEAR: tl.constexpr = 3 if POOLED_H > 3 else POOLED_H
    y_grid = _load_grid(grid_ptr, height)
    x_grid = _load_grid(grid_ptr + 4, width)
    share = share_of_sample(y_grid, x_grid)
    first_y, last_y = _bins_between(y - 1.0, y + 1.0, y_grid, POOLED_H)
    y_count = tl.minimum(2.01 / tl.maximum(tl.abs(y_grid[1]), 1e-3) + 2.0, POOLED_H).to(tl.int32)
    first_x, last_x = _bins_between(x_tile - 1.0, x_tile + total.shape[0] + 0.0, x_grid, POOLED_W)
    for bin_x in range(first_x, last_x + 1):
        column = tl.zeros((1, total.shape[1], total.shape[2]), total.dtype)
        for near in tl.static_range(NEAR):
            bin_y = first_y + near
            weight = _weight(y, y_grid, bin_y, RATIO)
            reached = (bin_y <= last_y) & (weight > 0) & used
            grad = tl.load(grad_ptr + bin_y * stride_h + bin_x * stride_w, mask=reached, other=0.0)
            column += weight * grad.to(total.dtype)
        for near in range(NEAR, y_count):
            bin_y = first_y + near
            weight = _weight(y, y_grid, bin_y, RATIO)
            reached = (bin_y <= last_y) & (weight > 0) & used
            grad = tl.load(grad_ptr + bin_y * stride_h + bin_x * stride_w, mask=reached, other=0.0)
            column += weight * grad.to(total.dtype)
        total += share * _weight(x, x_grid, bin_x, RATIO) * column
    return total


@triton.jit
def _load_grid(pointer, extent):
    return tl.load(pointer), tl.load(pointer + 1), tl.load(pointer + 2), tl.load(pointer + 3), extent


@triton.jit
def _bins_between(low, high, grid, BINS: tl.constexpr):
    """First and last bin that may have a sample in [low, high]; bins may run backwards."""
    start, bin, _, _, _ = grid
    size = tl.where(tl.abs(bin) < 1e-20, 1e-20, bin)
    a, b = (low - start) / size, (high - start) / size
    first = tl.floor(tl.minimum(a, b) - 1e-3)
    last = tl.floor(tl.maximum(a, b) + 1e-3)
    first = tl.minimum(tl.maximum(first, 0.0), BINS).to(tl.int32)
    return first, tl.minimum(tl.maximum(last, -1.0), BINS - 1).to(tl.int32)


@triton.jit
def _weight(pixel, grid, index, RATIO: tl.constexpr):
    """What the samples of bin `index` give to `pixel`, along one axis."""
    start, bin, samples, step, _ = grid
    weight = tl.zeros_like(pixel + index + start)
    if RATIO > 0 and RATIO <= 4:
        for number in tl.static_range(RATIO):
            position, counts = sample(grid, index, number)
            weight += tent(pixel, position, counts)
    elif RATIO > 0:
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


@triton.jit
def _log2(power):
    """The exponent of an integer power of two."""
    return ((power.to(tl.float32).to(tl.int32, bitcast=True) >> 23) & 255) - 127


def roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    feature_shapes: list[tuple[int, int, int, int]],
    channels_last: bool,
    spatial_scales: list[float],
    output_size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> list[Tensor]:
    """The gradient for each level, in the dtype of grad [K, C, *output_size], which may have any strides."""
    num_rois, (images, channels) = rois.shape[0], feature_shapes[0][:2]
    if num_rois == 0 or grad.numel() == 0:
        return [_empty(grad, shape, channels_last).zero_() for shape in feature_shapes]
    rois = rois.contiguous()
    grads = [_empty(grad, shape, channels_last) for shape in feature_shapes]
    levels = level_tables(feature_shapes, spatial_scales, canonical_scale, canonical_level, rois.dtype)
    pooling = {"POOLED_H": output_size[0], "POOLED_W": output_size[1], "RATIO": max(sampling_ratio, 0)}
    with tuning.on_device_of(rois):
        buckets = bucket_rois(rois, levels, pooling, aligned)
        tuning.launch(
            _gather_kernel,
            lambda meta: (_tiles(feature_shapes, meta), triton.cdiv(channels, meta["BLOCK_C"])),
            (tuple(grads), grad, *buckets),
            rois_bucket=tuning.bucket(num_rois),
            stride_k=grad.stride(0),
            stride_c=grad.stride(1),
            stride_h=grad.stride(2),
            stride_w=grad.stride(3),
            CHANNELS=channels,
            CHANNELS_LAST=channels_last,
            WIDE=max(math.prod(shape[1:]) for shape in feature_shapes) >= 2**31,
            GROUP=GROUP,
            levels=levels["levels"],
            num_images=images,
            LEVELS=len(feature_shapes),
            **pooling,
        )
    return grads


def _empty(like: Tensor, shape: tuple[int, int, int, int], channels_last: bool) -> Tensor:
    images, channels, height, width = shape
    if channels_last:
        return like.new_empty((images, height, width, channels)).permute(0, 3, 1, 2)
    return like.new_empty(shape)


def _tiles(shapes: Sequence[tuple[int, int, int, int]], meta: Mapping[str, Any]) -> int:
    return sum(
        images * triton.cdiv(height, meta["TILE_H"]) * triton.cdiv(width, meta["TILE_W"])
        for images, _, height, width in shapes
    )

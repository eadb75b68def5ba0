"""RoIPool (Fast R-CNN, section 2.1), and its gradient as a gather: no atomics, the same bits at each run.

Forward, a program owns a bin and a block of channels and remembers where on the map it found the largest value.
Backward, a program owns a tile of pixels and a block of channels. It tests 32 RoIs at a time for those that reach its
tile, and goes through these in the order of their index: of the bins that reach it, it adds up in registers the
gradients of those that took their value there. It stores once, and nothing is cleared before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import bitwise_or, divide, finite, log2_of_bit
from kernels.gpu.roi_geometry import map_bucket
from kernels.memory_format import empty_map


@triton.jit
def _rounded(corner, scale):
    """The corner in whole pixels of the map, halves away from 0; far corners nearer, so that sums of two fit."""
    value = corner * scale
    size = tl.minimum(tl.abs(value), 536870912.0)
    whole = tl.floor(size)
    whole = tl.where(size - whole >= 0.5, whole + 1.0, whole)
    return tl.where(value < 0, -whole, whole).to(tl.int32)


@triton.jit
def _load_roi(rois_ptr, roi, present, spatial_scale, num_images, BINS_Y: tl.constexpr, BINS_X: tl.constexpr):
    """Image, or -1 for a RoI that gives zeros, and along y and x the first pixel and the size of a bin."""
    row = rois_ptr + roi * 5
    scale = tl.full((), spatial_scale, rois_ptr.dtype.element_ty)
    index = tl.load(row, mask=present, other=-1.0)
    x1, y1 = tl.load(row + 1, mask=present, other=0.0), tl.load(row + 2, mask=present, other=0.0)
    x2, y2 = tl.load(row + 3, mask=present, other=0.0), tl.load(row + 4, mask=present, other=0.0)
    usable = finite(x1 * scale) & finite(y1 * scale) & finite(x2 * scale) & finite(y2 * scale)
    usable = usable & (index >= 0) & (index < num_images)
    image = tl.where(usable, index, -1.0).to(tl.int32)
    x, y = _rounded(tl.where(usable, x1, 0.0), scale), _rounded(tl.where(usable, y1, 0.0), scale)
    right, bottom = _rounded(tl.where(usable, x2, 0.0), scale), _rounded(tl.where(usable, y2, 0.0), scale)
    y_bin = divide(tl.maximum(bottom - y + 1, 1).to(scale.dtype), BINS_Y)
    x_bin = divide(tl.maximum(right - x + 1, 1).to(scale.dtype), BINS_X)
    return image, y, y_bin, x, x_bin


@triton.jit
def _bin(number, first, size, extent):
    """First pixel of a bin and one past the last, limited to the map."""
    start = first + tl.floor(tl.cast(number, size.dtype) * size).to(tl.int32)
    stop = first + tl.ceil(tl.cast(number + 1, size.dtype) * size).to(tl.int32)
    return tl.minimum(tl.maximum(start, 0), extent), tl.minimum(tl.maximum(stop, 0), extent)


def prune_narrow_reads(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Of `tuning.within_channels`, where channels are neighbours, those whose threads read 16 bytes at once; if there
    are none, those that read most.
    """
    fitting = tuning.within_channels(configs, arguments)
    if not arguments["CHANNELS_LAST"]:
        return fitting
    size = arguments["input_ptr"].element_size()
    read = [min(each.kwargs["BLOCK_C"] * size / tuning.threads(each, arguments), 16) for each in fitting]
    return [config for config, width in zip(fitting, read, strict=True) if width == max(read)]


@tuning.tuned(
    configs=[
        triton.Config({"BLOCK_C": block}, num_warps=warps)
        for block, warps in [(256, 1), (128, 1), (256, 2), (512, 2), (64, 1), (32, 1)]
    ],
    key=["CHANNELS", "POOLED_H", "POOLED_W", "CHANNELS_LAST", "rois_bucket", "map_bucket"],
    prune=prune_narrow_reads,
)
@triton.jit(do_not_specialize=["height", "width", "num_images", "rois_bucket", "map_bucket"])
def _pool_kernel(
    input_ptr,  # [N, C, H, W], contiguous or channels last
    rois_ptr,  # [K, 5]
    pooled_ptr,  # [K, C, POOLED_H, POOLED_W] in the same memory format: the result
    source_ptr,  # the same: y * W + x of each result, or -1
    spatial_scale: tl.float64,
    height,
    width,
    num_images,
    rois_bucket,
    map_bucket,
    CHANNELS: tl.constexpr,
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program: (bin of a RoI, BLOCK_C channels)."""
    BINS: tl.constexpr = POOLED_H * POOLED_W
    LOWEST: tl.constexpr = -3.4028234663852886e38
    dtype: tl.constexpr = rois_ptr.dtype.element_ty
    roi, cell = (tl.program_id(0) // BINS).to(tl.int64), tl.program_id(0) % BINS
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < CHANNELS
    image, y, y_bin, x, x_bin = _load_roi(rois_ptr, roi, roi >= 0, spatial_scale, num_images, POOLED_H, POOLED_W)
    top, bottom = _bin(cell // POOLED_W, y, y_bin, height)
    left, right = _bin(cell % POOLED_W, x, x_bin, width)
    bottom = tl.where(image >= 0, bottom, top)
    best = tl.full((BLOCK_C,), LOWEST, dtype)
    source = tl.full((BLOCK_C,), -1, tl.int32)
    pixels = height.to(tl.int64) * width
    features = input_ptr + image.to(tl.int64) * pixels * CHANNELS
    features += channel if CHANNELS_LAST else channel * pixels
    STEP: tl.constexpr = CHANNELS if CHANNELS_LAST else 1
    for row in range(top, bottom):
        for column in range(left, right):
            pixel = row * width + column
            value = tl.load(features + pixel.to(tl.int64) * STEP, mask=there, other=LOWEST).to(dtype)
            larger = value > best
            best = tl.where(larger, value, best)
            source = tl.where(larger, pixel, source)
    empty = (bottom <= top) | (right <= left)
    best = tl.where(empty, 0.0, best)
    out = roi * (BINS * CHANNELS) + (cell * CHANNELS + channel if CHANNELS_LAST else channel * BINS + cell)
    tl.store(pooled_ptr + out, best.to(pooled_ptr.dtype.element_ty), mask=there)
    tl.store(source_ptr + out, source, mask=there)


def prune_spills(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Of `tuning.within_channels`, without two rows of 128 channels of contiguous maps, which spill in float16."""
    fitting = tuning.within_channels(configs, arguments)
    if arguments["CHANNELS_LAST"]:
        return fitting
    return [each for each in fitting if (each.kwargs["BLOCK_Y"], each.kwargs["BLOCK_C"]) != (2, 128)] or fitting


# Where RoIs crowd, each pixel is in most of their bins: small tiles keep the longest program short.
@tuning.tuned(
    configs=[
        triton.Config({"BLOCK_Y": rows, "BLOCK_X": columns, "BLOCK_C": channels}, num_warps=warps)
        for rows, columns, channels, warps in [
            (1, 4, 128, 1), (2, 4, 128, 1), (4, 4, 64, 1), (1, 8, 128, 1), (4, 8, 32, 1)
        ]
    ],
    key=["CHANNELS", "POOLED_H", "POOLED_W", "CHANNELS_LAST", "rois_bucket", "map_bucket"],
    prune=prune_spills,
)  # fmt: skip
@triton.jit(do_not_specialize=["num_rois", "height", "width", "num_images", "rois_bucket", "map_bucket"])
def _source_kernel(
    grad_ptr,  # [K, C, POOLED_H, POOLED_W] in the memory format of the features
    source_ptr,  # the same
    rois_ptr,  # [K, 5]
    out_ptr,  # [N, C, H, W] the result
    spatial_scale: tl.float64,
    num_rois,
    height,
    width,
    num_images,
    rois_bucket,
    map_bucket,
    CHANNELS: tl.constexpr,
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
    WORD: tl.constexpr = 32,
):
    """Program: (BLOCK_Y x BLOCK_X pixels of an image, BLOCK_C channels)."""
    BINS: tl.constexpr = POOLED_H * POOLED_W
    dtype: tl.constexpr = rois_ptr.dtype.element_ty
    down, across = tl.cdiv(height, BLOCK_Y), tl.cdiv(width, BLOCK_X)
    tile = tl.program_id(0)
    own_image, first_y, first_x = tile // across // down, tile // across % down * BLOCK_Y, tile % across * BLOCK_X
    pixel = tl.arange(0, BLOCK_Y * BLOCK_X)
    own_y, own_x = first_y + pixel // BLOCK_X, first_x + pixel % BLOCK_X
    # Pixels past the right border have the numbers of others; they are added to, too, and not stored.
    own_pixel = own_y * width + own_x
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < CHANNELS
    total = tl.zeros((BLOCK_Y * BLOCK_X, BLOCK_C), dtype)
    for start in range(0, num_rois, WORD):
        number = start + tl.arange(0, WORD)
        image, y, y_bin, x, x_bin = _load_roi(
            rois_ptr, number.to(tl.int64), number < num_rois, spatial_scale, num_images, POOLED_H, POOLED_W
        )
        top, bottom = _bin(0, y, y_bin, height)[0], _bin(POOLED_H - 1, y, y_bin, height)[1]
        left, right = _bin(0, x, x_bin, width)[0], _bin(POOLED_W - 1, x, x_bin, width)[1]
        reaching = (top < first_y + BLOCK_Y) & (first_y < bottom) & (left < first_x + BLOCK_X) & (first_x < right)
        reaching = (reaching & (image == own_image)).to(tl.int32)
        members = tl.reduce(reaching << tl.arange(0, WORD), 0, bitwise_or)
        while members != 0:
            lowest = members & -members
            members ^= lowest
            roi = (start + log2_of_bit(lowest)).to(tl.int64)
            _image, y_of, y_size, x_of, x_size = _load_roi(
                rois_ptr, roi, roi >= 0, spatial_scale, num_images, POOLED_H, POOLED_W
            )
            for row in range(POOLED_H):
                row_top, row_bottom = _bin(row, y_of, y_size, height)
                if (row_top < first_y + BLOCK_Y) & (first_y < row_bottom):
                    for column in range(POOLED_W):
                        column_left, column_right = _bin(column, x_of, x_size, width)
                        if (column_left < first_x + BLOCK_X) & (first_x < column_right):
                            cell = row * POOLED_W + column
                            place = roi * (BINS * CHANNELS)
                            place += cell * CHANNELS + channel if CHANNELS_LAST else channel * BINS + cell
                            source = tl.load(source_ptr + place, mask=there, other=-1)
                            grad = tl.load(grad_ptr + place, mask=there, other=0.0).to(dtype)
                            total += tl.where(source[None, :] == own_pixel[:, None], grad[None, :], 0.0)
    pixels = height.to(tl.int64) * width
    out = out_ptr + own_image.to(tl.int64) * pixels * CHANNELS
    last = own_pixel.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    first = own_pixel.to(tl.int64)[:, None] + channel[None, :] * pixels
    inside = ((own_y < height) & (own_x < width))[:, None] & there[None, :]
    tl.store(out + (last if CHANNELS_LAST else first), total.to(out_ptr.dtype.element_ty), mask=inside)


def roi_pool(input: Tensor, rois: Tensor, output_size: tuple[int, int], spatial_scale: float) -> tuple[Tensor, Tensor]:
    """See `kernels.roi_pool`. Pooled features and where on the map each is from, y * W + x or -1."""
    num_rois, channels = rois.shape[0], input.shape[1]
    channels_last = not input.is_contiguous()
    shape = (num_rois, channels, *output_size)
    pooled = empty_map(input, shape, channels_last)
    source = empty_map(input, shape, channels_last, torch.int32)
    if num_rois == 0:
        return pooled, source
    with tuning.on_device_of(input):
        tuning.launch(
            _pool_kernel,
            lambda meta: (num_rois * output_size[0] * output_size[1], triton.cdiv(channels, meta["BLOCK_C"])),
            (input, rois.contiguous(), pooled, source),
            spatial_scale=spatial_scale,
            **_sizes(input.shape, num_rois, output_size, channels_last),
            enable_fp_fusion=False,
        )
    return pooled, source


def roi_pool_backward(
    grad: Tensor,
    source: Tensor,
    rois: Tensor,
    input_size: tuple[int, int, int, int],
    channels_last: bool,
    spatial_scale: float,
) -> Tensor:
    """The gradient of the features [N, C, H, W]: each bin's goes to the pixel that it is from."""
    images, channels, height, width = input_size
    out = empty_map(grad, input_size, channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    with tuning.on_device_of(grad):
        tuning.launch(
            _source_kernel,
            lambda meta: (
                images * triton.cdiv(height, meta["BLOCK_Y"]) * triton.cdiv(width, meta["BLOCK_X"]),
                triton.cdiv(channels, meta["BLOCK_C"]),
            ),
            (
                grad.contiguous(memory_format=memory_format),
                source.contiguous(memory_format=memory_format),
                rois.contiguous(),
                out,
            ),
            spatial_scale=spatial_scale,
            num_rois=rois.shape[0],
            **_sizes(input_size, rois.shape[0], (grad.shape[2], grad.shape[3]), channels_last),
            enable_fp_fusion=False,
        )
    return out


def _sizes(
    input_size: Sequence[int], num_rois: int, output_size: tuple[int, int], channels_last: bool
) -> dict[str, Any]:
    images, channels, height, width = input_size
    return {
        "height": height,
        "width": width,
        "num_images": images,
        "rois_bucket": tuning.bucket(num_rois),
        "map_bucket": map_bucket([input_size]),
        "CHANNELS": channels,
        "POOLED_H": output_size[0],
        "POOLED_W": output_size[1],
        "CHANNELS_LAST": channels_last,
    }

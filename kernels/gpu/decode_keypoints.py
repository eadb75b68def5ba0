"""Keypoints out of heatmaps (torchvision's `heatmaps_to_keypoints`): one launch, and nothing of a box's size in memory.

A program owns a heatmap and walks the pixels of the box that it is resized to, BLOCK columns at a time and row by row.
Bicubic resizing is separable: the four rows of the heatmap around a row of the box are interpolated along x and kept in
registers, and while rows of the box lie between the same rows of the heatmap, a pixel costs four multiplications. When
the walk passes a row of the heatmap, the four move on by one.

A column keeps its largest value and the first row that has it; only at the end are columns compared. So the first of
equal values wins, row after row. The weights are those of PyTorch's bicubic resizing; sums are in its order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import divide, finite


@triton.jit
def _side(low, high):
    """The side of a box, at least 1, and whether the box is usable along this axis, not longer than 32,768."""
    length = tl.maximum(high - low, 1.0)
    usable = finite(low) & finite(high) & (length <= 32768.0)
    return tl.where(usable, length, 1.0), usable


@triton.jit
def _near(distance):
    """Cubic weight up to a pixel away (Keys, 1981, a = -0.75)."""
    return (1.25 * distance - 2.25) * distance * distance + 1.0


@triton.jit
def _far(beyond, rest):
    """Cubic weight 1 + `beyond` = 2 - `rest` pixels away: as factors, as terms of up to 6 would cancel."""
    return -0.75 * beyond * rest * rest


@triton.jit
def _weights(part):
    """Of the four pixels around a place that is a part of a pixel past the second."""
    rest = 1.0 - part
    return _far(part, rest), _near(part), _near(rest), _far(rest, part)


@triton.jit
def _along_x(
    heatmap, y, step, columns, weights, inside, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, dtype: tl.constexpr
):
    """Row y of the heatmap, or the nearest that there is, interpolated at the columns of the box [BLOCK]."""
    row = heatmap + tl.minimum(tl.maximum(y, 0), HEIGHT - 1) * (WIDTH * step)
    a = tl.load(row + columns[0] * step, mask=inside, other=0.0).to(dtype)
    b = tl.load(row + columns[1] * step, mask=inside, other=0.0).to(dtype)
    c = tl.load(row + columns[2] * step, mask=inside, other=0.0).to(dtype)
    d = tl.load(row + columns[3] * step, mask=inside, other=0.0).to(dtype)
    return a * weights[0] + b * weights[1] + c * weights[2] + d * weights[3]


@triton.jit
def _column(x, WIDTH: tl.constexpr):
    return tl.minimum(tl.maximum(x, 0), WIDTH - 1)


def prune_columns(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Where channels are neighbours, and addresses take more registers, one column a thread; else more than one."""
    last = arguments["CHANNELS_LAST"]
    return [each for each in configs if (each.kwargs["BLOCK"] <= tuning.threads(each, arguments)) == last] or [*configs]


@tuning.tuned(
    configs=[
        triton.Config({"BLOCK": block}, num_warps=warps)
        for block, warps in [(128, 2), (256, 4), (128, 1), (64, 1), (512, 4), (128, 4), (64, 2)]
    ],
    key=["HEIGHT", "WIDTH", "CHANNELS_LAST", "heatmaps_bucket"],
    prune=prune_columns,
)
@triton.jit(do_not_specialize=["keypoints", "heatmaps_bucket"])
def _keypoint_kernel(
    heatmaps_ptr,  # [K, N, HEIGHT, WIDTH], contiguous or channels last
    boxes_ptr,  # [K, 4] x1, y1, x2, y2
    keypoints_ptr,  # [K, N, 3] the result
    scores_ptr,  # [K, N] the result
    keypoints,
    heatmaps_bucket,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program: a heatmap."""
    dtype: tl.constexpr = scores_ptr.dtype.element_ty
    INTEGER: tl.constexpr = tl.int32 if WIDTH < 32768 else tl.int64
    number = tl.program_id(0).to(tl.int64)
    roi = number // keypoints
    if CHANNELS_LAST:
        heatmap = heatmaps_ptr + roi * keypoints * (HEIGHT * WIDTH) + number % keypoints
        step = keypoints
    else:
        heatmap = heatmaps_ptr + number * (HEIGHT * WIDTH)
        step = 1
    box = boxes_ptr + roi * 4
    x1, y1 = tl.load(box).to(dtype), tl.load(box + 1).to(dtype)
    x_side, x_usable = _side(x1, tl.load(box + 2).to(dtype))
    y_side, y_usable = _side(y1, tl.load(box + 3).to(dtype))
    width, height = tl.ceil(x_side), tl.ceil(y_side)
    columns, rows = width.to(tl.int32), height.to(tl.int32)
    # Pixel p of the box lies at (p + 1/2) SIZE / pixels - 1/2 of the heatmap, which is one less than (2 p + 1) SIZE +
    # pixels over 2 pixels: whole numbers, so that no position is rounded.
    x_double, y_double = 2 * columns, 2 * rows
    x_unit, y_unit = divide(tl.full((), 0.5, dtype), width), divide(tl.full((), 0.5, dtype), height)
    if not (x_usable & y_usable):
        columns = 0
    score = tl.full((), float("-inf"), dtype)
    place = tl.full((), 2147483647, tl.int32)  # fits: a usable box has at most 2^30 pixels
    for x_tile in range(0, columns, BLOCK):
        x = x_tile + tl.arange(0, BLOCK)
        inside = x < columns
        place_x = (2 * x + 1).to(INTEGER) * WIDTH + columns
        at = (place_x // x_double).to(tl.int32) - 1
        weights = _weights((place_x % x_double).to(dtype) * x_unit)
        taps = (_column(at - 1, WIDTH), _column(at, WIDTH), _column(at + 1, WIDTH), _column(at + 2, WIDTH))
        current = (HEIGHT + rows) // y_double - 1
        rest = (HEIGHT + rows) % y_double
        a = _along_x(heatmap, current - 1, step, taps, weights, inside, HEIGHT, WIDTH, dtype)
        b = _along_x(heatmap, current, step, taps, weights, inside, HEIGHT, WIDTH, dtype)
        c = _along_x(heatmap, current + 1, step, taps, weights, inside, HEIGHT, WIDTH, dtype)
        d = _along_x(heatmap, current + 2, step, taps, weights, inside, HEIGHT, WIDTH, dtype)
        best = tl.full((BLOCK,), float("-inf"), dtype)
        best_row = tl.zeros((BLOCK,), tl.int32)
        for y in range(rows):
            while rest >= y_double:
                a, b, c = b, c, d
                rest -= y_double
                current += 1
                d = _along_x(heatmap, current + 2, step, taps, weights, inside, HEIGHT, WIDTH, dtype)
            above, upper, lower, below = _weights(rest.to(dtype) * y_unit)
            rest += 2 * HEIGHT
            value = a * above + b * upper + c * lower + d * below
            # True also for a first NaN, which nothing replaces.
            better = (best == best) & ~(value <= best)
            best = tl.where(better, value, best)
            best_row = tl.where(better, y, best_row)
        is_nan = inside & (best != best)
        any_nan = tl.max(is_nan.to(tl.int32), axis=0) > 0
        largest = tl.max(tl.where(inside & (best == best), best, float("-inf")), axis=0)
        wins = inside & tl.where(any_nan, is_nan, best == largest)
        earliest = tl.min(tl.where(wins, best_row * columns + x, 2147483647), axis=0)
        largest = tl.where(any_nan, float("nan"), largest)
        larger = (largest > score) | (any_nan & (score == score))
        equal = (largest == score) | (any_nan & (score != score))
        replaces = larger | (equal & (earliest < place))
        score = tl.where(replaces, largest, score)
        place = tl.where(replaces, earliest, place)
    out = keypoints_ptr + number * 3
    if columns > 0:
        x_pixel, y_pixel = divide(x_side, width), divide(y_side, height)
        tl.store(out, ((place % columns).to(dtype) + 0.5) * x_pixel + x1)
        tl.store(out + 1, ((place // columns).to(dtype) + 0.5) * y_pixel + y1)
        tl.store(out + 2, tl.full((), 1.0, dtype))
        tl.store(scores_ptr + number, score)
    else:
        zero = tl.zeros((), dtype)
        tl.store(out, zero)
        tl.store(out + 1, zero)
        tl.store(out + 2, zero)
        tl.store(scores_ptr + number, zero)


def decode_keypoints(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.decode_keypoints`. heatmaps: [K, N, H, W], boxes: [K, 4]; keypoints [K, N, 3], scores [K, N]."""
    rois, number, height, width = heatmaps.shape
    compute = torch.promote_types(heatmaps.dtype, torch.float32)
    keypoints = heatmaps.new_empty((rois, number, 3), dtype=compute)
    scores = heatmaps.new_empty((rois, number), dtype=compute)
    if scores.numel() == 0:
        return keypoints, scores
    channels_last = not heatmaps.is_contiguous() and heatmaps.is_contiguous(memory_format=torch.channels_last)
    with tuning.on_device_of(heatmaps):
        tuning.launch(
            _keypoint_kernel,
            (rois * number,),
            (heatmaps if channels_last else heatmaps.contiguous(), boxes.contiguous(), keypoints, scores),
            keypoints=number,
            heatmaps_bucket=tuning.bucket(rois * number),
            HEIGHT=height,
            WIDTH=width,
            CHANNELS_LAST=channels_last,
            enable_fp_fusion=False,
        )
    return keypoints, scores

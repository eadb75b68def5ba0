"""The kernel that gathers the gradient of RoIAlign for parts of tiles; see `kernels.gpu.roi_align_backward`."""

from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl

from kernels.gpu import tuning
from kernels.gpu.language import log2_of_bit, pick_pointer
from kernels.gpu.roi_shares import place_of_part


def prune_rows_of_channels(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Blocks of four channels a thread, two in float64, or of all channels where there are fewer.

    More channels of 16 bits would be read 16 bytes at a time, but eight sums for each thread take too many registers.
    On AMD one row at a time, as the addresses of two take more scalar registers than there are.
    """
    grad = arguments.get("grad_ptr")
    a_thread = 2 if grad is not None and grad.element_size() == 8 else 4
    channels = triton.next_power_of_2(arguments["CHANNELS"])
    most_rows = 1 if arguments.get("backend") == "hip" else 2

    def suits(config: triton.Config) -> bool:
        return bool(config.kwargs["BLOCK_C"] == min(a_thread * tuning.threads(config, arguments), channels))

    configs = [config for config in configs if config.kwargs["ROWS"] <= most_rows]
    fitting = [config for config in configs if suits(config)]
    return fitting or [min(configs, key=lambda config: config.kwargs["BLOCK_C"])]


@tuning.tuned(
    configs=[
        triton.Config({"ROWS": rows, "BLOCK_C": block}, num_warps=1)
        for rows, block in [(2, 128), (1, 128), (2, 64), (1, 64), (2, 32), (1, 32), (1, 256)]
    ],
    key=["CHANNELS", "POOLED_H", "POOLED_W", "LEVELS", "CHANNELS_LAST", "rois_bucket", "map_bucket"],
    prune=prune_rows_of_channels,
)
@triton.jit(do_not_specialize=["num_images", "rois_bucket", "map_bucket", "words", "rows", "columns", "parts"])
def gather_kernel(
    grads,  # per level [N, C, H_l, W_l], contiguous or channels last: the result
    todo_ptr,  # see `Shares` for this and the next two
    slot_ptr,
    sums_ptr,
    grad_ptr,  # [K, PH, PW, C]
    order_ptr,  # see `TileBuckets` for this and the next three
    begin_ptr,
    place_ptr,
    member_ptr,
    weight_ptr,  # see `RoiWeights` for this and the next
    reach_ptr,
    num_images,
    rois_bucket,
    map_bucket,
    words,
    rows,
    columns,
    parts,
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    QUAD: tl.constexpr,
    SKEW: tl.constexpr,
    PART_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (ROWS of a part or a slot, block of channels); a part is PART_ROWS quads of pixels below one another."""
    TIMES: tl.constexpr = PART_ROWS // ROWS
    todo = tl.load(todo_ptr + tl.program_id(0) // TIMES)
    row = tl.program_id(0) % TIMES * ROWS
    reached = todo < parts
    part = tl.where(reached, todo, todo - parts)
    slot = part - parts
    dealt = slot >= 0
    share, number = 0, 1
    if dealt:
        part = tl.where(row == 0, tl.load(slot_ptr + slot * 3) // PART_ROWS, -1)
        row = tl.load(slot_ptr + slot * 3) % PART_ROWS
        share = tl.load(slot_ptr + slot * 3 + 1)
        number = tl.load(slot_ptr + slot * 3 + 2)
    if part >= 0:
        level, image, y, x, height, width = place_of_part(place_ptr, part, TILE, PART_ROWS, QUAD)
        y += row
        if (y < height) & (x < width):
            channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
            tables = weight_ptr, reach_ptr, rows, columns
            segment = level * num_images + image
            begin = tl.load(begin_ptr + segment).to(tl.int32)
            end = tl.load(begin_ptr + segment + 1).to(tl.int32)
            tile = part // (TILE * TILE // (PART_ROWS * QUAD))
            rois = order_ptr, member_ptr + tile.to(tl.int64) * words, begin, tl.where(reached | dealt, end, begin)
            if dealt | (ROWS == 1):
                upper, lower = _sum_rois(
                    rois, share, number, y, x, grad_ptr, channels, tables, CHANNELS,
                    POOLED_H, POOLED_W, ALIGNED, QUAD, SKEW, 1, GROUP, BLOCK_C,
                )  # fmt: skip
                if number > 1:
                    of_slot = sums_ptr + slot.to(tl.int64) * (QUAD * CHANNELS)
                    _store(of_slot, upper, lower, channels, 0, QUAD, QUAD, QUAD, 1, CHANNELS, CHANNELS_LAST, 1)
                else:
                    _store_part(
                        grads, upper, lower, channels, level, image, y, x, height, width,
                        LEVELS, CHANNELS, CHANNELS_LAST, WIDE, 1,
                    )  # fmt: skip
            else:
                upper, lower = _sum_rois(
                    rois, 0, 1, y, x, grad_ptr, channels, tables, CHANNELS,
                    POOLED_H, POOLED_W, ALIGNED, QUAD, SKEW, ROWS, GROUP, BLOCK_C,
                )  # fmt: skip
                _store_part(
                    grads, upper, lower, channels, level, image, y, x, height, width,
                    LEVELS, CHANNELS, CHANNELS_LAST, WIDE, ROWS,
                )  # fmt: skip


@triton.jit
def _sum_rois(
    rois, share, number, y, x, grad_ptr, channels, tables,
    CHANNELS: tl.constexpr, POOLED_H: tl.constexpr, POOLED_W: tl.constexpr, ALIGNED: tl.constexpr,
    QUAD: tl.constexpr, SKEW: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The sums for the quads at (y, x) and below, of every `number`-th RoI of a tile from `share` on."""
    order_ptr, members, begin, end = rois
    zero = tl.zeros((BLOCK_C,), tables[0].dtype.element_ty)
    upper = zero, zero, zero, zero
    lower = zero, zero, zero, zero
    turn = number - share
    for group in range(begin, end, GROUP):
        left_to_do = tl.load(members)
        members += 1
        while left_to_do != 0:
            lowest = left_to_do & -left_to_do
            left_to_do ^= lowest
            turn = tl.where(turn == number, 1, turn + 1)
            if turn == 1:
                roi = tl.load(order_ptr + group + log2_of_bit(lowest))
                upper, lower = _add_roi(
                    upper, lower, roi, y, x, grad_ptr + channels, channels < CHANNELS, tables, CHANNELS,
                    POOLED_H, POOLED_W, ALIGNED, QUAD, SKEW, ROWS, CHANNELS % BLOCK_C == 0,
                )  # fmt: skip
    return upper, lower


@triton.jit
def _add_roi(
    upper, lower, roi, y, x, grad_ptr, used, tables,
    CHANNELS: tl.constexpr, POOLED_H: tl.constexpr, POOLED_W: tl.constexpr, ALIGNED: tl.constexpr,
    QUAD: tl.constexpr, SKEW: tl.constexpr, ROWS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The sums of both quads plus what one RoI gives to them. Only the bins that reach them are visited, each once."""
    weight_ptr, reach_ptr, rows, columns = tables
    reach = reach_ptr + roi * (2 * (rows + columns) + 2)
    first_y = tl.load(reach + y)
    last_y = tl.load(reach + rows + y + (ROWS - 1))
    if first_y <= last_y:
        reach += 2 * rows + x
        first_x = tl.load(reach)
        last_x = tl.load(reach + columns + (QUAD - 1))
        weights = weight_ptr + roi * (rows + columns + SKEW * (POOLED_H + POOLED_W))
        y_weights = weights + y + SKEW * first_y
        x_weights = weights + rows + SKEW * POOLED_H + x + SKEW * first_x
        # Most rows are reached by at most 3 bins, whose weights stay in registers.
        more = last_y - first_y
        upper_0 = tl.load(y_weights)
        upper_1 = tl.load(y_weights + SKEW, mask=more >= 1, other=0.0)
        upper_2 = tl.load(y_weights + 2 * SKEW, mask=more >= 2, other=0.0)
        if ROWS > 1:
            lower_0 = tl.load(y_weights + 1)
            lower_1 = tl.load(y_weights + 1 + SKEW, mask=more >= 1, other=0.0)
            lower_2 = tl.load(y_weights + 1 + 2 * SKEW, mask=more >= 2, other=0.0)
        source = grad_ptr + roi * (POOLED_H * POOLED_W * CHANNELS)
        down = POOLED_W * CHANNELS
        across = CHANNELS
        if ALIGNED:  # bins may run backwards, tables do not
            forward_y = tl.load(reach_ptr + roi * (2 * (rows + columns) + 2) + 2 * (rows + columns))
            forward_x = tl.load(reach_ptr + roi * (2 * (rows + columns) + 2) + 2 * (rows + columns) + 1)
            source += ((1 - forward_y) * (POOLED_H - 1) * POOLED_W + (1 - forward_x) * (POOLED_W - 1)) * CHANNELS
            down *= 2 * forward_y - 1
            across *= 2 * forward_x - 1
        source += first_y * down + first_x * across
        for _ in range(first_x, last_x + 1):
            grad = _bin(source, used, WHOLE, upper_0.dtype)
            above = upper_0 * grad
            if ROWS > 1:
                below = lower_0 * grad
            if more >= 1:
                grad = _bin(source + down, used, WHOLE, upper_0.dtype)
                above += upper_1 * grad
                if ROWS > 1:
                    below += lower_1 * grad
            if more >= 2:
                grad = _bin(source + 2 * down, used, WHOLE, upper_0.dtype)
                above += upper_2 * grad
                if ROWS > 1:
                    below += lower_2 * grad
                for near in range(3, more + 1):
                    grad = _bin(source + near * down, used, WHOLE, upper_0.dtype)
                    above += tl.load(y_weights + near * SKEW) * grad
                    if ROWS > 1:
                        below += tl.load(y_weights + near * SKEW + 1) * grad
            # Scalars, as a vector of them would be laid out anew.
            weight_0, weight_1 = tl.load(x_weights), tl.load(x_weights + 1)
            weight_2, weight_3 = tl.load(x_weights + 2), tl.load(x_weights + 3)
            a, b, c, d = upper
            upper = a + weight_0 * above, b + weight_1 * above, c + weight_2 * above, d + weight_3 * above
            if ROWS > 1:
                a, b, c, d = lower
                lower = a + weight_0 * below, b + weight_1 * below, c + weight_2 * below, d + weight_3 * below
            x_weights += SKEW
            source += across
    return upper, lower


@triton.jit
def _bin(pointer, used, WHOLE: tl.constexpr, dtype: tl.constexpr):
    """The gradient of a bin; there is no mask where blocks divide the channels."""
    if WHOLE:
        grad = tl.load(pointer)
    else:
        grad = tl.load(pointer, mask=used, other=0.0)
    return grad.to(dtype)


@triton.jit
def _store_part(
    grads, upper, lower, channels, level, image, y, x, height, width,
    LEVELS: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Stores the quads at (y, x) of a level and image."""
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    across = width.to(index_type)
    plane = height * across
    out = pick_pointer(grads, level, LEVELS) + image.to(tl.int64) * (plane * CHANNELS)
    pixel = y * across + x
    _store(
        out, upper, lower, channels, pixel, across, plane, width - x, height - y, CHANNELS, CHANNELS_LAST, ROWS
    )  # fmt: skip


@triton.jit
def _store(
    out, upper, lower, channels, pixel, across, plane, columns_left, rows_left,
    CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Stores the quads at `pixel` of a map with rows of `across` and `plane` pixels, as far as it goes."""
    if CHANNELS_LAST:
        _store_pixels(out + pixel * CHANNELS, upper, channels, columns_left, CHANNELS)
        if (ROWS > 1) & (rows_left > 1):
            _store_pixels(out + (pixel + across) * CHANNELS, lower, channels, columns_left, CHANNELS)
    else:
        _store_channels(out + pixel, upper, channels, plane, columns_left, CHANNELS)
        if (ROWS > 1) & (rows_left > 1):
            _store_channels(out + pixel + across, lower, channels, plane, columns_left, CHANNELS)


@triton.jit
def _store_pixels(out, quad, channels, count, CHANNELS: tl.constexpr):
    """Stores the first `count` pixels as rows of channels."""
    for i in tl.static_range(4):
        mask = (channels < CHANNELS) & (i < count)
        tl.store(out + i * CHANNELS + channels, quad[i].to(out.dtype.element_ty), mask=mask)


@triton.jit
def _store_channels(out, quad, channels, plane, count, CHANNELS: tl.constexpr):
    """Stores the first `count` pixels of each channel, which are neighbours in a contiguous map."""
    pixels = tl.join(tl.join(quad[0], quad[2]), tl.join(quad[1], quad[3])).reshape(quad[0].shape[0], 4)
    pixel = tl.arange(0, 4)[None, :]
    mask = (channels < CHANNELS)[:, None] & (pixel < count)
    tl.store(out + (channels * plane)[:, None] + pixel, pixels.to(out.dtype.element_ty), mask=mask)

"""RoIAlign over all pyramid levels and images in one launch, backward, as a gather: no atomics, the same bits
each run.

The gradient of a pixel is the sum over RoIs and their bins of Wy[bin, y] Wx[bin, x] grad[bin] / samples, the
transpose of the forward pass. A warp owns a few neighbouring pixels of a row and a block of channels. It goes
through the RoIs that reach its tile in the order of their index; for each column of bins it sums grad along y
once, for its row, and gives the sum to the pixels along x. It adds in registers, in the precision of the boxes,
and stores once in the gradient's dtype: tiles that no RoI reaches are stores of zeros, and nothing is cleared
before. There is no shared memory and no barrier, and control flow is uniform.

What is the same for all channels is made beforehand: for each tile the set of its RoIs (`kernels.gpu.roi_buckets`)
and for each RoI the weights of its bins (`kernels.gpu.roi_weights`). Proposals crowd around objects: the tiles
with the most RoIs come first, and their channels are shared out to more warps, so that no warp works on alone when
all others are done. The sum for a pixel depends neither on that nor on the configuration.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import pick, pick_pointer
from kernels.gpu.roi_buckets import GROUP, TILE, bucket_rois, count_tiles
from kernels.gpu.roi_geometry import level_tables
from kernels.gpu.roi_weights import QUAD, SKEW, roi_weights

CROWDED = 64  # tiles an image whose channels are shared out


def prune_rows_of_channels(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Blocks of at most the channels there are, and of what a warp reads at once: 16 bytes for each of its threads.

    Wider ones would need no more instructions, but let more RoIs be read at a time than the L2 cache holds. Contiguous
    maps take narrower ones, as rows of pixels need registers while they are made.
    """
    grad = arguments.get("grad_ptr")
    row = 32 * 16 // (grad.element_size() if grad is not None else 4)
    widest = min(row if arguments["CHANNELS_LAST"] else 128, row, triton.next_power_of_2(arguments["CHANNELS"]))
    fitting = [config for config in configs if config.kwargs["BLOCK_C"] <= widest]
    return fitting or [min(configs, key=lambda config: config.kwargs["BLOCK_C"])]


@tuning.tuned(
    configs=[
        triton.Config({"PIXELS": pixels, "BLOCK_C": block, "SPLIT": split}, num_warps=1)
        for pixels, block, split in [
            (8, 256, 4),
            (8, 128, 2),
            (4, 256, 4),
            (4, 128, 2),
            (8, 64, 1),
            (8, 64, 2),
            (8, 32, 1),
        ]
    ],
    key=["CHANNELS", "POOLED_H", "POOLED_W", "LEVELS", "CHANNELS_LAST", "rois_bucket"],
    prune=prune_rows_of_channels,
)
@triton.jit(do_not_specialize=["num_images", "rois_bucket", "words", "rows", "columns", "crowded"])
def _gather_kernel(
    grads,  # per level [N, C, H_l, W_l], contiguous or channels last: the result
    grad_ptr,  # [K, PH, PW, C]
    order_ptr,  # [K], and the next five: see `TileBuckets`
    begin_ptr,
    rank_ptr,
    place_ptr,
    count_ptr,
    member_ptr,
    weight_ptr,  # see `roi_weights`, and the next
    reach_ptr,
    grid_ptr,
    levels,  # as in `level_tables`
    num_images,
    rois_bucket,
    words,
    rows,
    columns,
    crowded,
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
    PIXELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Program (part of a tile, block of channels); the `crowded` first tiles have SPLIT times as many parts."""
    PARTS: tl.constexpr = TILE * TILE // PIXELS
    program = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C
    buckets = order_ptr, begin_ptr, place_ptr, count_ptr, member_ptr, num_images, words
    tables = weight_ptr, reach_ptr, grid_ptr, rows, columns
    first = crowded * PARTS * SPLIT
    if program < first:
        tile = tl.load(rank_ptr + program // (PARTS * SPLIT)).to(tl.int32)
        part = program // SPLIT % PARTS
        channel += program % SPLIT * (BLOCK_C // SPLIT)
        _sum_pixels(
            grads, grad_ptr, tile, part, channel, buckets, tables, levels, LEVELS, CHANNELS, POOLED_H, POOLED_W,
            ALIGNED, CHANNELS_LAST, WIDE, GROUP, TILE, QUAD, SKEW, PIXELS, BLOCK_C // SPLIT,
        )  # fmt: skip
    else:
        tile = tl.load(rank_ptr + crowded + (program - first) // PARTS).to(tl.int32)
        part = (program - first) % PARTS
        _sum_pixels(
            grads, grad_ptr, tile, part, channel, buckets, tables, levels, LEVELS, CHANNELS, POOLED_H, POOLED_W,
            ALIGNED, CHANNELS_LAST, WIDE, GROUP, TILE, QUAD, SKEW, PIXELS, BLOCK_C,
        )  # fmt: skip


@triton.jit
def _sum_pixels(
    grads, grad_ptr, tile, part, channel, buckets, tables, levels,
    LEVELS: tl.constexpr, CHANNELS: tl.constexpr, POOLED_H: tl.constexpr, POOLED_W: tl.constexpr,
    ALIGNED: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    GROUP: tl.constexpr, TILE: tl.constexpr, QUAD: tl.constexpr, SKEW: tl.constexpr,
    PIXELS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of PIXELS neighbours, one or two quads, in BLOCK_C channels."""
    order_ptr, begin_ptr, place_ptr, count_ptr, member_ptr, num_images, words = buckets
    level = tl.load(place_ptr + tile * 4)
    image = tl.load(place_ptr + tile * 4 + 1)
    y = tl.load(place_ptr + tile * 4 + 2) + part // (TILE // PIXELS)
    x = tl.load(place_ptr + tile * 4 + 3) + part % (TILE // PIXELS) * PIXELS
    height = pick(levels[0], level, LEVELS).to(tl.int32)
    width = pick(levels[1], level, LEVELS).to(tl.int32)
    if (y < height) & (x < width):
        channels = channel + tl.arange(0, BLOCK_C)
        zero = tl.zeros((BLOCK_C,), tables[0].dtype.element_ty)
        left = zero, zero, zero, zero
        right = zero, zero, zero, zero
        if tl.load(count_ptr + tile) > 0:
            segment = level * num_images + image
            begin = tl.load(begin_ptr + segment).to(tl.int32)
            end = tl.load(begin_ptr + segment + 1).to(tl.int32)
            members = member_ptr + tile.to(tl.int64) * words
            for group in range(begin, end, GROUP):
                left_to_do = tl.load(members)
                members += 1
                while left_to_do != 0:
                    lowest = left_to_do & -left_to_do
                    left_to_do ^= lowest
                    roi = tl.load(order_ptr + group + _log2(lowest))
                    left, right = _add_roi(
                        left, right, roi, y, x, grad_ptr + channels, channels < CHANNELS, tables, CHANNELS,
                        POOLED_H, POOLED_W, ALIGNED, QUAD, SKEW, PIXELS, CHANNELS % BLOCK_C == 0,
                    )  # fmt: skip

        index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
        plane = height.to(index_type) * width
        out = pick_pointer(grads, level, LEVELS) + image.to(tl.int64) * (plane * CHANNELS)
        pixel = (y * width + x).to(index_type)
        if CHANNELS_LAST:
            out += pixel * CHANNELS
            _store_quad(out, left, channels, width - x, CHANNELS)
            if PIXELS > QUAD:
                _store_quad(out + QUAD * CHANNELS, right, channels, width - x - QUAD, CHANNELS)
        else:
            out += pixel
            _store_rows(out, left, channels, plane, width - x, CHANNELS)
            if PIXELS > QUAD:
                _store_rows(out + QUAD, right, channels, plane, width - x - QUAD, CHANNELS)


@triton.jit
def _add_roi(
    left, right, roi, y, x, grad_ptr, used, tables,
    CHANNELS: tl.constexpr, POOLED_H: tl.constexpr, POOLED_W: tl.constexpr, ALIGNED: tl.constexpr,
    QUAD: tl.constexpr, SKEW: tl.constexpr, PIXELS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The sums of both quads plus what one RoI gives to them. Only bins and quads that meet are visited."""
    weight_ptr, reach_ptr, grid_ptr, rows, columns = tables
    reach = reach_ptr + roi * (2 * (rows + columns))
    first_y = tl.load(reach + y)
    last_y = tl.load(reach + rows + y)
    if first_y <= last_y:
        reach += 2 * rows + x
        first_x = tl.load(reach)
        last_left = tl.load(reach + columns + (QUAD - 1))
        first_right = tl.load(reach + (PIXELS - QUAD))
        last_x = tl.load(reach + columns + (PIXELS - 1))
        weights = weight_ptr + roi * (rows + columns + SKEW * (POOLED_H + POOLED_W))
        y_weights = weights + y + SKEW * first_y
        x_weights = weights + rows + SKEW * POOLED_H + x + SKEW * first_x
        # Most rows are reached by at most 3 bins, whose weights stay in registers.
        more = last_y - first_y
        weight_0 = tl.load(y_weights)
        weight_1 = tl.load(y_weights + SKEW, mask=more >= 1, other=0.0)
        weight_2 = tl.load(y_weights + 2 * SKEW, mask=more >= 2, other=0.0)
        source = grad_ptr + roi * (POOLED_H * POOLED_W * CHANNELS)
        down = POOLED_W * CHANNELS
        across = CHANNELS
        if ALIGNED:  # bins may run backwards, tables do not
            if tl.load(grid_ptr + roi * 10 + 1) < 0:
                source += (POOLED_H - 1) * POOLED_W * CHANNELS
            if tl.load(grid_ptr + roi * 10 + 6) < 0:
                source += (POOLED_W - 1) * CHANNELS
            down *= tl.where(tl.load(grid_ptr + roi * 10 + 1) < 0, -1, 1)
            across *= tl.where(tl.load(grid_ptr + roi * 10 + 6) < 0, -1, 1)
        source += first_y * down + first_x * across
        for bin_x in range(first_x, last_x + 1):
            column = weight_0 * _bin(source, used, WHOLE, weight_0.dtype)
            if more >= 1:
                column += weight_1 * _bin(source + down, used, WHOLE, weight_0.dtype)
            if more >= 2:
                column += weight_2 * _bin(source + 2 * down, used, WHOLE, weight_0.dtype)
                for near in range(3, more + 1):
                    weight = tl.load(y_weights + near * SKEW)
                    column += weight * _bin(source + near * down, used, WHOLE, weight_0.dtype)
            if PIXELS == QUAD:
                left = _spread(left, column, x_weights)
            else:
                if bin_x <= last_left:
                    left = _spread(left, column, x_weights)
                if bin_x >= first_right:
                    right = _spread(right, column, x_weights + QUAD)
            x_weights += SKEW
            source += across
    return left, right


@triton.jit
def _bin(pointer, used, WHOLE: tl.constexpr, dtype: tl.constexpr):
    """The gradient of a bin; there is no mask where blocks divide the channels."""
    if WHOLE:
        grad = tl.load(pointer)
    else:
        grad = tl.load(pointer, mask=used, other=0.0)
    return grad.to(dtype)


@triton.jit
def _spread(quad, column, weights):
    """A quad plus a column of bins in its share to each pixel: scalars, as a vector of them would be laid out anew."""
    first, second, third, fourth = quad
    first += tl.load(weights) * column
    second += tl.load(weights + 1) * column
    third += tl.load(weights + 2) * column
    fourth += tl.load(weights + 3) * column
    return first, second, third, fourth


@triton.jit
def _store_quad(out, quad, channels, count, CHANNELS: tl.constexpr):
    """Stores the first `count` pixels as rows of channels."""
    for i in tl.static_range(4):
        tl.store(
            out + i * CHANNELS + channels, quad[i].to(out.dtype.element_ty), mask=(channels < CHANNELS) & (i < count)
        )


@triton.jit
def _store_rows(out, quad, channels, plane, count, CHANNELS: tl.constexpr):
    """Stores the first `count` pixels of each channel, which are neighbours in a contiguous map."""
    rows = tl.join(tl.join(quad[0], quad[2]), tl.join(quad[1], quad[3])).reshape(quad[0].shape[0], 4)
    pixel = tl.arange(0, 4)[None, :]
    mask = (channels < CHANNELS)[:, None] & (pixel < count)
    tl.store(out + (channels * plane)[:, None] + pixel, rows.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _log2(power):
    """The exponent of a power of two in 32 bits, the highest of which is not a sign here."""
    return (power.to(tl.uint32, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


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
    """The gradient for each level, in the dtype of grad [K, C, *output_size], which may have any strides.

    What is read many times is read best as rows of channels: other gradients are copied to that format.
    """
    num_rois, (images, channels) = rois.shape[0], feature_shapes[0][:2]
    if num_rois == 0 or grad.numel() == 0:
        return [_empty(grad, shape, channels_last).zero_() for shape in feature_shapes]
    rois = rois.contiguous()
    grads = [_empty(grad, shape, channels_last) for shape in feature_shapes]
    levels = level_tables(feature_shapes, spatial_scales, canonical_scale, canonical_level, rois.dtype)
    pooling = {"POOLED_H": output_size[0], "POOLED_W": output_size[1], "RATIO": max(sampling_ratio, 0)}
    tiles = count_tiles(feature_shapes)
    crowded = min(tiles, images * CROWDED)

    def parts(meta: Mapping[str, Any]) -> tuple[int, int]:
        a_tile = TILE * TILE // meta["PIXELS"]
        return a_tile * (tiles + crowded * (meta["SPLIT"] - 1)), triton.cdiv(channels, meta["BLOCK_C"])

    with tuning.on_device_of(rois):
        buckets = bucket_rois(rois, levels, tiles, pooling, aligned)
        weights = roi_weights(buckets.grid, buckets.window, feature_shapes, pooling)
        tuning.launch(
            _gather_kernel,
            parts,
            (
                tuple(grads),
                grad.permute(0, 2, 3, 1).contiguous(),
                buckets.order,
                buckets.begin,
                buckets.rank,
                buckets.place,
                buckets.count,
                buckets.members,
                weights.weight,
                weights.reach,
                buckets.grid,
            ),
            rois_bucket=tuning.bucket(num_rois),
            words=buckets.members.shape[1],
            rows=weights.rows,
            columns=weights.columns,
            crowded=crowded,
            CHANNELS=channels,
            ALIGNED=aligned,
            CHANNELS_LAST=channels_last,
            WIDE=max(math.prod(shape[1:]) for shape in feature_shapes) >= 2**31,
            GROUP=GROUP,
            TILE=TILE,
            QUAD=QUAD,
            SKEW=SKEW,
            levels=levels["levels"],
            num_images=images,
            LEVELS=len(feature_shapes),
            POOLED_H=output_size[0],
            POOLED_W=output_size[1],
        )
    return grads


def _empty(like: Tensor, shape: tuple[int, int, int, int], channels_last: bool) -> Tensor:
    images, channels, height, width = shape
    if channels_last:
        return like.new_empty((images, height, width, channels)).permute(0, 3, 1, 2)
    return like.new_empty(shape)

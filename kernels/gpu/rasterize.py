"""Polygons to masks of a bit a pixel, equal in every pixel to pycocotools (rleFrPoly in the COCO API's maskApi.c).

Its rule: corners are moved to fifths of a pixel, int(5 x + 0.5). Along its longer direction an edge has a point at each
fifth, rounded across as int(origin + slope * step + 0.5) in float64, from its lower end on. Where two neighbouring
points lie at u = 5 x + 2 and u + 1, the boundary crosses column x of pixels, and the pixels from row ceil(v / 5 - 0.4)
on change, v being the smaller of the two (rows above the image count as row 0). A pixel is inside a part that crosses
its column an odd number of times above; an instance is the union of its parts.

An edge crosses a column once if its ends lie on both sides and never otherwise, so a program takes a word of 32
columns and some rows, and all edges one after another, instead of walking. Products and sums must not be fused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.masks import WORD


def prune_rows(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Blocks of fewer than twice the rows there are; the shortest if all are longer."""
    tallest = triton.next_power_of_2(max(arguments["height"], 1))
    fitting = [config for config in configs if config.kwargs["BLOCK_Y"] <= tallest]
    return fitting or [min(configs, key=lambda config: config.kwargs["BLOCK_Y"])]


@triton.jit
def _fifths(values):
    """Coordinates in fifths of a pixel; those far outside, and what is no number, come to an end somewhere."""
    return tl.minimum(tl.maximum(values.to(tl.float64) * 5.0 + 0.5, -268435456.0), 268435456.0).to(tl.int32)


@triton.jit
def _pixel_from(fifths, limit):
    """The first pixel whose middle fifth is not before a place."""
    return tl.minimum((tl.maximum(fifths, 0) + 2) // 5, limit)


@triton.jit
def _range(offsets_ptr, index, last):
    """From offsets[index] up to offsets[index + 1], within 0 and `last`."""
    first = tl.minimum(tl.maximum(tl.load(offsets_ptr + index), 0), last)
    stop = tl.minimum(tl.maximum(tl.load(offsets_ptr + index + 1), first), last)
    return first, stop


@triton.jit(do_not_specialize=["num_vertices", "num_parts", "height", "width"])
def _extent_kernel(
    vertices_ptr,  # [P, 2]
    part_offsets_ptr,  # [parts + 1]
    instance_offsets_ptr,  # [G + 1]
    extents_ptr,  # [G, 4] left, top, and past right and bottom: the result
    num_vertices,
    num_parts,
    height,
    width,
    BLOCK: tl.constexpr,
):
    """Program: instance."""
    instance = tl.program_id(0).to(tl.int64)
    first_part, stop_part = _range(instance_offsets_ptr, instance, num_parts)
    first = tl.minimum(tl.maximum(tl.load(part_offsets_ptr + first_part), 0), num_vertices)
    stop = tl.minimum(tl.load(part_offsets_ptr + stop_part), num_vertices)
    low_x, low_y = tl.full((BLOCK,), 268435456, tl.int32), tl.full((BLOCK,), 268435456, tl.int32)
    high_x, high_y = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)
    for start in range(first, stop, BLOCK):
        vertex = start + tl.arange(0, BLOCK)
        inside = vertex < stop
        x = _fifths(tl.load(vertices_ptr + vertex * 2, mask=inside, other=0.0))
        y = _fifths(tl.load(vertices_ptr + vertex * 2 + 1, mask=inside, other=0.0))
        low_x, high_x = tl.where(inside, tl.minimum(low_x, x), low_x), tl.where(inside, tl.maximum(high_x, x), high_x)
        low_y, high_y = tl.where(inside, tl.minimum(low_y, y), low_y), tl.where(inside, tl.maximum(high_y, y), high_y)
    extent = extents_ptr + instance * 4
    tl.store(extent, _pixel_from(tl.min(low_x, 0), width))
    tl.store(extent + 1, _pixel_from(tl.min(low_y, 0), height))
    tl.store(extent + 2, _pixel_from(tl.max(high_x, 0), width))
    tl.store(extent + 3, _pixel_from(tl.max(high_y, 0), height))


@tuning.tuned(
    configs=[triton.Config({"BLOCK_Y": rows}, num_warps=warps) for rows, warps in [(32, 2), (64, 4), (16, 1)]],
    key=["instances_bucket", "image_bucket", "WHOLE"],
    prune=prune_rows,
)
@triton.jit(do_not_specialize=["num_vertices", "num_parts", "height", "words", "instances_bucket", "image_bucket"])
def _raster_kernel(
    vertices_ptr,  # [P, 2]
    part_offsets_ptr,  # [parts + 1]
    instance_offsets_ptr,  # [G + 1]
    extents_ptr,  # [G, 4]
    bits_ptr,  # [G, H, words] the result
    num_vertices,
    num_parts,
    height,
    words,
    instances_bucket,
    image_bucket,
    WHOLE: tl.constexpr,
    BLOCK_Y: tl.constexpr,
):
    """Program: (instance and word of its columns, BLOCK_Y rows)."""
    instance = (tl.program_id(0) // words).to(tl.int64)
    word = tl.program_id(0) % words
    first_row = tl.program_id(1) * BLOCK_Y
    y = first_row + tl.arange(0, BLOCK_Y)
    out = bits_ptr + (instance * height + y) * words + word
    left, top = tl.load(extents_ptr + instance * 4), tl.load(extents_ptr + instance * 4 + 1)
    right, bottom = tl.load(extents_ptr + instance * 4 + 2), tl.load(extents_ptr + instance * 4 + 3)
    if (word * 32 < right) & (word * 32 + 32 > left) & (first_row < bottom) & (first_row + BLOCK_Y > top):
        u = (word * 32 + tl.arange(0, 32)) * 5 + 2
        last_v = (first_row + BLOCK_Y - 1) * 5 + 2
        filled = tl.zeros((BLOCK_Y, 32), tl.int32)
        first_part, stop_part = _range(instance_offsets_ptr, instance, num_parts)
        for part in range(first_part, stop_part):
            first, stop = _range(part_offsets_ptr, part, num_vertices)
            odd = tl.zeros((BLOCK_Y, 32), tl.int32)
            before = vertices_ptr + tl.maximum(stop - 1, 0) * 2
            before_x = _fifths(tl.load(before, mask=first < stop, other=0.0))
            before_y = _fifths(tl.load(before + 1, mask=first < stop, other=0.0))
            for vertex in range(first, stop):
                x = _fifths(tl.load(vertices_ptr + vertex * 2))
                v = _fifths(tl.load(vertices_ptr + vertex * 2 + 1))
                low, high = tl.minimum(x, before_x), tl.maximum(x, before_x)
                if (low <= word * 160 + 157) & (high > word * 160 + 2) & (tl.minimum(v, before_y) <= last_v):
                    row = (tl.maximum(_crossing(before_x, before_y, x, v, u), 0) + 2) // 5
                    crosses = (u >= low) & (u < high)
                    odd ^= (crosses[None, :] & (row[None, :] <= y[:, None])).to(tl.int32)
                before_x, before_y = x, v
            filled |= odd
        column = tl.arange(0, 32)[None, :]
        filled = tl.where(word * 32 + column < right, filled, 0)  # the last word may go past the width
        value = tl.sum(filled << column, 1)
        tl.store(out, value, mask=(y < height) if WHOLE else (y >= top) & (y < bottom))
    elif WHOLE:
        tl.store(out, tl.zeros((BLOCK_Y,), tl.int32), mask=y < height)


@triton.jit
def _crossing(x1, y1, x2, y2, u):
    """The smaller v of the two points of an edge's walk between which it passes from u to u + 1."""
    dx, dy = tl.abs(x2 - x1), tl.abs(y2 - y1)
    steep = dx < dy
    swap = tl.where(steep, y1 > y2, x1 > x2)
    xs, ys = tl.where(swap, x2, x1), tl.where(swap, y2, y1)
    xe, ye = tl.where(swap, x1, x2), tl.where(swap, y1, y2)
    if steep:
        slope = (xe - xs).to(tl.float64) / dy.to(tl.float64)
        # The last step before x changes: at the guess or next to it.
        guess = ((u - xs).to(tl.float64) + 0.5) / tl.where(slope == 0, 1.0, slope)
        guess = tl.minimum(tl.maximum(guess, 0.0), dy.to(tl.float64)).to(tl.int32)
        later, same = _is_before(xs, slope, guess + 1, u), _is_before(xs, slope, guess, u)
        result = ys + tl.where(later, guess + 1, tl.where(same, guess, guess - 1))
    else:
        slope = (ye - ys).to(tl.float64) / tl.maximum(dx, 1).to(tl.float64)
        result = tl.minimum(_walk(ys, slope, u - xs), _walk(ys, slope, u - xs + 1))
    return result


@triton.jit
def _walk(origin, slope, step):
    """Where a walk stands across its direction after some steps."""
    return (origin.to(tl.float64) + slope * step.to(tl.float64) + 0.5).to(tl.int32)


@triton.jit
def _is_before(origin, slope, step, u):
    """Whether a walk along y has not yet passed between u and u + 1."""
    x = _walk(origin, slope, step)
    return tl.where(slope < 0, x > u, x <= u)


def rasterize(
    vertices: Tensor, part_offsets: Tensor, instance_offsets: Tensor, height: int, width: int, whole: bool
) -> tuple[Tensor, Tensor]:
    """See `kernels.rasterize.rasterized`."""
    number, words = instance_offsets.shape[0] - 1, -(-width // WORD)
    bits = vertices.new_empty((number, height, words), dtype=torch.int32)
    extents = vertices.new_empty((number, 4), dtype=torch.int32)
    if bits.numel() == 0:
        return bits, extents.zero_()
    polygons = (vertices.contiguous(), part_offsets.contiguous(), instance_offsets.contiguous(), extents)
    sizes = {"num_vertices": vertices.shape[0], "num_parts": part_offsets.shape[0] - 1, "height": height}
    with tuning.on_device_of(vertices):
        tuning.launch(
            _extent_kernel, (number,), polygons, **sizes, width=width, BLOCK=128, num_warps=1, enable_fp_fusion=False
        )
        tuning.launch(
            _raster_kernel,
            lambda meta: (number * words, triton.cdiv(height, meta["BLOCK_Y"])),
            (*polygons, bits),
            **sizes,
            words=words,
            instances_bucket=tuning.bucket(number),
            image_bucket=tuning.bucket(height * width),
            WHOLE=whole,
            enable_fp_fusion=False,
        )
    return bits, extents

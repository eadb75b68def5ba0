"""The best ground truth of each anchor, and the anchors that are best for one, without the matrix of overlaps.

A first kernel holds a block of anchors, which lie side by side on the image, and goes through the ground truth that
reaches into their common bounds; all other overlaps are exactly 0. It keeps each anchor's best so far, and joins each
ground truth's best within the block with that of other blocks by an integer maximum in memory: the bits of floats from
0 on are ordered as they are, and a maximum depends neither on the order nor on how often it is taken, so that tuning,
which runs a kernel many times, does no harm. A second kernel computes again what overlaps can be equal to a ground
truth's best, and marks those that are.

Overlaps are computed without fused multiply-adds and divided with correct rounding, so that ties are ties and both
kernels see the same bits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import bitwise_or, intersection_over_union, load_box, log2_of_bit


def prune_blocks(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Blocks that are not twice as long as there are anchors; the shortest if all are."""
    fitting = [config for config in configs if config.kwargs["BLOCK"] <= arguments["anchors_bucket"]]
    return fitting or [min(configs, key=lambda config: config.kwargs["BLOCK"])]


# One warp needs no barrier to find a block's best. Longer blocks take fewer instructions in all, but those of the
# largest anchors, which nearly all ground truth reaches, take longest.
CONFIGS = [
    triton.Config({"BLOCK": block}, num_warps=warps)
    for block, warps in [(64, 1), (128, 1), (32, 1), (128, 2), (256, 4)]
]
KEY = ["SHARED", "WITH_FORCED", "anchors_bucket", "gt_bucket", "images_bucket"]
COUNTS = ["num_anchors", "capacity", "anchors_bucket", "gt_bucket", "images_bucket"]


@triton.jit
def _load_boxes(ptr, count, BLOCK: tl.constexpr, dtype: tl.constexpr):
    """x1, y1, x2, y2 and the area of the first `count` of BLOCK boxes at `ptr`; zeros after them."""
    row = tl.arange(0, BLOCK)
    place = ptr + row[:, None] * 4 + tl.arange(0, 4)[None, :]
    corners = tl.load(place, mask=(row < count)[:, None], other=0.0).to(dtype)
    x, y = tl.split(tl.reshape(corners, (BLOCK, 2, 2)))
    x1, x2 = tl.split(x)
    y1, y2 = tl.split(y)
    return x1, y1, x2, y2, (x2 - x1) * (y2 - y1)


@triton.jit
def _count(ptr, capacity):
    """Places with ground truth; no count leads outside."""
    return tl.minimum(tl.maximum(tl.load(ptr), 0), capacity).to(tl.int32)


@triton.jit
def _bounds(anchor, inside):
    """Least and largest corners of the anchors inside."""
    x1, y1, x2, y2, _area = anchor
    low_x, low_y = tl.min(tl.where(inside, x1, float("inf")), 0), tl.min(tl.where(inside, y1, float("inf")), 0)
    high_x, high_y = tl.max(tl.where(inside, x2, -float("inf")), 0), tl.max(tl.where(inside, y2, -float("inf")), 0)
    return low_x, low_y, high_x, high_y


@triton.jit
def _reaching(gt_ptr, count, bounds, WORD: tl.constexpr, dtype: tl.constexpr):
    """Which of the first `count` of WORD ground truths at `gt_ptr` may have an overlap of other than 0 [WORD]."""
    low_x, low_y, high_x, high_y = bounds
    u1, v1, u2, v2, _area = _load_boxes(gt_ptr, count, WORD, dtype)
    apart = (u1 >= high_x) | (v1 >= high_y) | (u2 <= low_x) | (v2 <= low_y)
    return (tl.arange(0, WORD) < count) & (apart == 0)


@triton.jit
def _as_bits(flags, WORD: tl.constexpr):
    return tl.reduce(flags.to(tl.int32) << tl.arange(0, WORD), 0, bitwise_or)


@triton.jit
def _overlap(anchor, gt_ptr, dtype: tl.constexpr):
    """IoU of each anchor and the ground truth at `gt_ptr` [BLOCK]; 0 where it is not a number."""
    overlap = intersection_over_union(load_box(gt_ptr, dtype), anchor)
    return tl.where(overlap == overlap, overlap, 0.0)


@tuning.tuned(configs=CONFIGS, key=KEY, prune=prune_blocks, accumulates=["nearest_ptr"])
@triton.jit(do_not_specialize=COUNTS)
def _best_kernel(
    anchors_ptr,  # [N, 4] or [B, N, 4]
    gt_boxes_ptr,  # [B, G, 4]
    counts_ptr,  # [B]
    index_ptr,  # [B, N] the result
    best_ptr,  # [B, N] its overlap
    nearest_ptr,  # [B, G] bits of the best overlap of each ground truth, 0 before
    num_anchors,
    capacity,
    anchors_bucket,
    gt_bucket,
    images_bucket,
    SHARED: tl.constexpr,
    WITH_FORCED: tl.constexpr,
    BLOCK: tl.constexpr,
    WORD: tl.constexpr = 32,
):
    """Program: (BLOCK anchors, image)."""
    dtype: tl.constexpr = best_ptr.dtype.element_ty
    image = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    inside = tl.arange(0, BLOCK) < num_anchors - first
    anchors = anchors_ptr + (first if SHARED else image * num_anchors + first) * 4
    anchor = _load_boxes(anchors, num_anchors - first, BLOCK, dtype)
    bounds = _bounds(anchor, inside)
    gt_boxes, nearest = gt_boxes_ptr + image * capacity * 4, nearest_ptr + image * capacity
    count = _count(counts_ptr + image, capacity)
    # No overlap is below 0: where all are 0, the first ground truth is the best.
    best = tl.zeros((BLOCK,), dtype) + tl.where(count > 0, 0.0, -1.0).to(dtype)
    index = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, count, WORD):
        left = _as_bits(_reaching(gt_boxes + start * 4, count - start, bounds, WORD, dtype), WORD)
        while left != 0:
            lowest = left & -left
            left ^= lowest
            number = start + log2_of_bit(lowest)
            overlap = _overlap(anchor, gt_boxes + number * 4, dtype)
            better = overlap > best  # of equal ones the first stays
            best = tl.where(better, overlap, best)
            index = tl.where(better, number, index)
            if WITH_FORCED:
                bits = tl.where(inside, overlap, 0.0).to(nearest_ptr.dtype.element_ty, bitcast=True)
                of_gt = tl.max(bits, 0)  # as integers in one instruction a warp
                tl.atomic_max(nearest + number, of_gt, mask=of_gt > 0, sem="relaxed")
    out = image * num_anchors + first + tl.arange(0, BLOCK)
    tl.store(index_ptr + out, index.to(tl.int64), mask=inside)
    tl.store(best_ptr + out, best, mask=inside)


@tuning.tuned(configs=CONFIGS, key=KEY, prune=prune_blocks)
@triton.jit(do_not_specialize=COUNTS)
def _forced_kernel(
    anchors_ptr,  # [N, 4] or [B, N, 4]
    gt_boxes_ptr,  # [B, G, 4]
    counts_ptr,  # [B]
    best_ptr,  # [B, N]
    nearest_ptr,  # [B, G] the best overlap of each ground truth with any anchor
    forced_ptr,  # [B, N] bytes: the result
    num_anchors,
    capacity,
    anchors_bucket,
    gt_bucket,
    images_bucket,
    SHARED: tl.constexpr,
    WITH_FORCED: tl.constexpr,
    BLOCK: tl.constexpr,
    WORD: tl.constexpr = 32,
):
    """Program: (BLOCK anchors, image)."""
    dtype: tl.constexpr = best_ptr.dtype.element_ty
    image = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    inside = tl.arange(0, BLOCK) < num_anchors - first
    out = image * num_anchors + first + tl.arange(0, BLOCK)
    most = tl.max(tl.load(best_ptr + out, mask=inside, other=0.0), 0)
    forced = tl.zeros((BLOCK,), tl.int32)
    if most > 0:  # most blocks overlap nothing and are done
        anchors = anchors_ptr + (first if SHARED else image * num_anchors + first) * 4
        anchor = _load_boxes(anchors, num_anchors - first, BLOCK, dtype)
        bounds = _bounds(anchor, inside)
        gt_boxes, nearest_ptr = gt_boxes_ptr + image * capacity * 4, nearest_ptr + image * capacity
        count = _count(counts_ptr + image, capacity)
        for start in range(0, count, WORD):
            number = start + tl.arange(0, WORD)
            nearest = tl.load(nearest_ptr + number, mask=number < count, other=0.0)
            # A ground truth whose best is above all that the anchors have has it elsewhere.
            possible = (nearest > 0) & (nearest <= most)
            possible = possible & _reaching(gt_boxes + start * 4, count - start, bounds, WORD, dtype)
            left = _as_bits(possible, WORD)
            while left != 0:
                lowest = left & -left
                left ^= lowest
                one = start + log2_of_bit(lowest)
                is_nearest = _overlap(anchor, gt_boxes + one * 4, dtype) == tl.load(nearest_ptr + one)
                forced |= is_nearest.to(tl.int32)
    tl.store(forced_ptr + out, forced.to(tl.int8), mask=inside)


def match_boxes(
    anchors: Tensor, gt_boxes: Tensor, gt_counts: Tensor, with_forced: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.match_boxes`: index [B, N], IoU [B, N] and forced matches [B, N]."""
    images, capacity = gt_boxes.shape[:2]
    number = anchors.shape[-2]
    compute = torch.promote_types(torch.promote_types(anchors.dtype, gt_boxes.dtype), torch.float32)
    index = anchors.new_empty((images, number), dtype=torch.int64)
    best = anchors.new_empty((images, number), dtype=compute)
    forced = anchors.new_empty((images, number), dtype=torch.bool)
    if images == 0 or number == 0:
        return index, best, forced
    nearest = anchors.new_zeros((images, capacity), dtype=compute)
    bits = torch.int64 if compute == torch.float64 else torch.int32
    boxes = (anchors.contiguous(), gt_boxes.contiguous(), gt_counts.contiguous())
    arguments = {
        "num_anchors": number,
        "capacity": capacity,
        "anchors_bucket": tuning.bucket(number),
        "gt_bucket": tuning.bucket(capacity, 4),
        "images_bucket": tuning.bucket(images, 1),
        "SHARED": anchors.ndim == 2,
        "WITH_FORCED": with_forced,
        "enable_fp_fusion": False,
    }

    def grid(meta: dict[str, Any]) -> tuple[int, int]:
        return triton.cdiv(number, meta["BLOCK"]), images

    with tuning.on_device_of(anchors):
        tuning.launch(_best_kernel, grid, (*boxes, index, best, nearest.view(bits)), **arguments)
        if with_forced:
            tuning.launch(_forced_kernel, grid, (*boxes, best, nearest, forced.view(torch.int8)), **arguments)
        else:
            forced.zero_()
    return index, best, forced

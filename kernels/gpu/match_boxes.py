"""The best ground truth of each anchor, and the anchors that are best for one, without the matrix of overlaps.

A first kernel holds a block of anchors and goes through the ground truth a few boxes a step. Along one side of a tile
of overlaps it keeps each anchor's best so far, along the other it finds each ground truth's best within the block,
which an integer maximum joins in memory with that of the other blocks: the bits of floats from 0 on are ordered as they
are, and a maximum does not depend on the order. Most blocks do not touch most ground truth and write nothing. A second
kernel computes the overlaps again and marks those equal to a ground truth's best.

Overlaps are computed without fused multiply-adds and divided with correct rounding, so that ties are ties and both
kernels see the same bits. NaN is taken for infinity, which no overlap is: it is the largest, and equals none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import divide


def prune_tiles(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Steps that are not twice as long as there may be ground truth; the shortest if all are."""
    longest = arguments["gt_bucket"]
    fitting = [config for config in configs if config.kwargs["BLOCK_G"] <= longest]
    return fitting or [min(configs, key=lambda config: config.kwargs["BLOCK_G"])]


CONFIGS = [
    triton.Config({"BLOCK": block, "BLOCK_G": step}, num_warps=warps)
    for block, step, warps in [(128, 8, 4), (128, 16, 4), (256, 8, 4), (256, 8, 8), (64, 16, 2), (512, 4, 4)]
]
KEY = ["SHARED", "WITH_FORCED", "anchors_bucket", "gt_bucket", "images_bucket"]
COUNTS = ["num_anchors", "capacity", "anchors_bucket", "gt_bucket", "images_bucket"]


@triton.jit
def _load_box(ptr, inside, dtype: tl.constexpr):
    """x1, y1, x2, y2 and the area of the boxes at `ptr`; 0 where not inside."""
    x1 = tl.load(ptr, mask=inside, other=0.0).to(dtype)
    y1 = tl.load(ptr + 1, mask=inside, other=0.0).to(dtype)
    x2 = tl.load(ptr + 2, mask=inside, other=0.0).to(dtype)
    y2 = tl.load(ptr + 3, mask=inside, other=0.0).to(dtype)
    return x1, y1, x2, y2, (x2 - x1) * (y2 - y1)


@triton.jit
def _overlaps(anchor, gt):
    """IoU of each anchor [BLOCK] and each ground truth [BLOCK_G]: [BLOCK, BLOCK_G]."""
    x1, y1, x2, y2, area = anchor
    u1, v1, u2, v2, gt_area = gt
    w = tl.maximum(tl.minimum(x2[:, None], u2[None, :]) - tl.maximum(x1[:, None], u1[None, :]), 0.0)
    h = tl.maximum(tl.minimum(y2[:, None], v2[None, :]) - tl.maximum(y1[:, None], v1[None, :]), 0.0)
    intersection = h * w
    overlap = divide(intersection, gt_area[None, :] + area[:, None] - intersection)
    return tl.where(overlap == overlap, overlap, float("inf"))


@tuning.tuned(configs=CONFIGS, key=KEY, prune=prune_tiles, accumulates=["nearest_ptr"])
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
    BLOCK_G: tl.constexpr,
):
    """Program: (BLOCK anchors, image)."""
    image = tl.program_id(1).to(tl.int64)
    dtype: tl.constexpr = best_ptr.dtype.element_ty
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_anchors
    count = tl.load(counts_ptr + image).to(tl.int32)
    first_anchor = tl.zeros_like(image) if SHARED else image * num_anchors
    anchor = _load_box(anchors_ptr + (first_anchor + row) * 4, inside, dtype)
    best = tl.full((BLOCK,), -1.0, dtype)
    index = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, count, BLOCK_G):
        number = first + tl.arange(0, BLOCK_G)
        present = number < count
        gt = _load_box(gt_boxes_ptr + (image * capacity + number) * 4, present, dtype)
        overlap = tl.where(present[None, :], _overlaps(anchor, gt), -1.0)
        # Of equal overlaps the first, within a step and, as only a larger one replaces it, of all.
        step_best, step_index = tl.max(overlap, axis=1, return_indices=True)
        better = step_best > best
        best = tl.where(better, step_best, best)
        index = tl.where(better, first + step_index, index)
        if WITH_FORCED:
            of_gt = tl.max(tl.where(inside[:, None], overlap, 0.0), axis=0)
            bits = of_gt.to(nearest_ptr.dtype.element_ty, bitcast=True)
            tl.atomic_max(nearest_ptr + image * capacity + number, bits, mask=present & (of_gt > 0), sem="relaxed")
    out = image * num_anchors + row
    tl.store(index_ptr + out, index.to(tl.int64), mask=inside)
    tl.store(best_ptr + out, tl.where(best < float("inf"), best, float("nan")), mask=inside)


@tuning.tuned(configs=CONFIGS, key=KEY, prune=prune_tiles)
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
    BLOCK_G: tl.constexpr,
):
    """Program: (BLOCK anchors, image)."""
    image = tl.program_id(1).to(tl.int64)
    dtype: tl.constexpr = best_ptr.dtype.element_ty
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_anchors
    # Anchors that overlap nothing are most; a block of them is done.
    own = tl.load(best_ptr + image * num_anchors + row, mask=inside, other=0.0)
    touched = tl.max((own != 0.0).to(tl.int32), axis=0) > 0
    count = tl.where(touched, tl.load(counts_ptr + image).to(tl.int32), 0)
    first_anchor = tl.zeros_like(image) if SHARED else image * num_anchors
    anchor = _load_box(anchors_ptr + (first_anchor + row) * 4, inside, dtype)
    forced = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, count, BLOCK_G):
        number = first + tl.arange(0, BLOCK_G)
        present = number < count
        gt = _load_box(gt_boxes_ptr + (image * capacity + number) * 4, present, dtype)
        nearest = tl.load(nearest_ptr + image * capacity + number, mask=present, other=0.0)
        counts = (nearest > 0) & (nearest < float("inf"))
        is_nearest = (_overlaps(anchor, gt) == nearest[None, :]) & counts[None, :]
        forced |= tl.max(is_nearest.to(tl.int32), axis=1)
    tl.store(forced_ptr + image * num_anchors + row, forced.to(tl.int8), mask=inside)


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

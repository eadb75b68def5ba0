"""Greedy non-maximum suppression of a few boxes: a program does all of a segment, and there is nothing to sort.

A box comes before another if its score is higher, or equal and its index lower. Each thread holds a box and goes
through all others; bits say which come before its own, and which of these suppress it. Greedy suppression is the only
fixed point of

    alive[j] = candidate[j] and no alive[i] before j suppresses j

in whatever order boxes lie. It is found from alive = candidate: each round settles at least the first box that is not
settled, and mostly many. The place of a box that stays is the number of those before it that stay.

The work grows with the square of the boxes and falls to one multiprocessor, so that many boxes go through
`kernels.gpu.nms`, which has to sort them. At 256 boxes the longest warp executes 13,200 instructions here, and there
3,700 and then 4,000, after a sort and six more operations of PyTorch that each are launched.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import bit_count, bitwise_or, intersection_over_union, load_box
from kernels.rounding import float32_at_most

MOST_BOXES = 256


def prune_warps(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Those with one or two boxes a thread; the fewest warps if there are none."""
    fitting = [each for each in configs if 1 <= arguments["BOXES"] / tuning.threads(each, arguments) <= 2]
    return fitting or [min(configs, key=lambda config: config.num_warps)]


@tuning.tuned(
    configs=[triton.Config({}, num_warps=warps) for warps in (8, 4, 2, 1)],
    key=["BOXES", "EVERY", "segments_bucket"],
    prune=prune_warps,
)
@triton.jit(do_not_specialize=["num_boxes", "max_keep", "segments_bucket"])
def _at_once_kernel(
    boxes_ptr,  # [S, N, 4]
    scores_ptr,  # [S, N]
    counts_ptr,  # [S] how many of them there are; None: all
    keep_ptr,  # [S, max_keep] the result
    kept_ptr,  # [S] how many of it are kept
    threshold: tl.float64,
    num_boxes,
    max_keep,
    segments_bucket,
    EVERY: tl.constexpr,  # whether boxes of every score take part, or no -inf and no NaN
    BOXES: tl.constexpr,  # a multiple of 32, at least N
):
    """Program: segment."""
    WORDS: tl.constexpr = BOXES // 32
    dtype: tl.constexpr = tl.float64 if boxes_ptr.dtype.element_ty == tl.float64 else tl.float32
    segment = tl.program_id(0).to(tl.int64)
    count = num_boxes
    if counts_ptr is not None:
        count = tl.minimum(tl.maximum(tl.load(counts_ptr + segment), 0), num_boxes).to(tl.int32)
    boxes_ptr += segment * num_boxes * 4
    scores_ptr += segment * num_boxes
    index = tl.arange(0, BOXES)
    candidate = index < count
    box = load_box(boxes_ptr + index * 4, dtype, candidate)
    score, turn = _load_score(scores_ptr, index, BOXES, EVERY, candidate)
    if not EVERY:
        candidate = candidate & (score > -float("inf"))  # false for NaN
    limit = tl.full((), threshold, dtype)
    word = tl.arange(0, WORDS)[None, :]
    before = tl.zeros((BOXES, WORDS), tl.int32)  # bit i % 32 of word i / 32 of row j: i comes before j
    suppressing = tl.zeros((BOXES, WORDS), tl.int32)  # and suppresses it
    for number in range(tl.cdiv(count, 32)):
        bits = tl.zeros((BOXES,), tl.int32)
        above = tl.zeros((BOXES,), tl.int32)
        for i in range(tl.minimum(count - number * 32, 32)):
            other = number * 32 + i
            other_score, other_turn = _load_score(scores_ptr, other, BOXES, EVERY)
            earlier = (other_score > score) | ((other_score == score) & (other_turn < turn))
            overlap = intersection_over_union(load_box(boxes_ptr + other * 4, dtype), box)
            bits |= earlier.to(tl.int32) << i
            above |= (overlap > limit).to(tl.int32) << i
        here = word == number
        before = tl.where(here, bits[:, None], before)
        suppressing = tl.where(here, (bits & above)[:, None], suppressing)
    alive = candidate
    settled = num_boxes < 0
    while settled == 0:
        losing = suppressing & _as_words(alive, WORDS)[None, :]
        still = candidate & (tl.reduce(losing, 1, bitwise_or) == 0)
        settled = tl.sum((still != alive).to(tl.int32), 0) == 0
        alive = still
    place = tl.sum(bit_count(before & _as_words(alive, WORDS)[None, :]), 1)
    keep_ptr += segment * max_keep
    tl.store(keep_ptr + place, index.to(tl.int64), mask=alive & (place < max_keep))
    kept = tl.minimum(tl.sum(alive.to(tl.int32), 0), max_keep)
    tl.store(kept_ptr + segment, kept.to(tl.int64))
    for first in range(0, max_keep, BOXES):
        rest = first + index
        tl.store(keep_ptr + rest, tl.full((BOXES,), -1, tl.int64), mask=(rest >= kept) & (rest < max_keep))


@triton.jit
def _load_score(ptr, index, BOXES: tl.constexpr, EVERY: tl.constexpr, mask=None):
    """A score and the turn of the box among equal ones. NaN is the highest, as in torch.sort: infinite, and before all
    others that are.
    """
    score = tl.load(ptr + index, mask=mask)
    score = score.to(tl.float64 if score.dtype == tl.float64 else tl.float32)
    if EVERY:
        is_nan = score != score
        return tl.where(is_nan, float("inf"), score), tl.where(is_nan, index - BOXES, index)
    return score, index


@triton.jit
def _as_words(flags, WORDS: tl.constexpr):
    """32 flags a word."""
    bits = tl.reshape(flags.to(tl.int32), (WORDS, 32)) << tl.arange(0, 32)[None, :]
    return tl.reduce(bits, 1, bitwise_or)


def segmented_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_keep: int, counts: Tensor | None, every: bool
) -> tuple[Tensor, Tensor]:
    """See `kernels.gpu.nms.segmented_nms`; for at most MOST_BOXES boxes a segment."""
    segments, num_boxes = scores.shape
    keep = scores.new_empty((segments, max_keep), dtype=torch.int64)
    kept = scores.new_empty(segments, dtype=torch.int64)
    with tuning.on_device_of(boxes):
        tuning.launch(
            _at_once_kernel,
            (segments,),
            (boxes.contiguous(), scores.contiguous(), None if counts is None else counts.contiguous(), keep, kept),
            threshold=iou_threshold if boxes.dtype == torch.float64 else float32_at_most(iou_threshold),
            num_boxes=num_boxes,
            max_keep=max_keep,
            segments_bucket=tuning.bucket(segments, 1),
            EVERY=every,
            BOXES=tuning.bucket(num_boxes, 32),
            enable_fp_fusion=False,
        )
    return keep, kept

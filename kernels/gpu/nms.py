"""Greedy non-maximum suppression of many segments at once, on the device throughout.

A stable sort orders each segment by score. A first kernel writes, for the upper triangle of each segment
only, 64 bits a word: bit j of word (i, w) says that box i suppresses box 64 w + j. A second kernel, one
program a segment, goes through the boxes 64 a step. Greedy suppression within a step is the only fixed point
of

    alive[j] = candidate[j] and no alive[i] with i < j suppresses j

and is found by iterating it on 64 lanes from alive = candidate: each round settles at least one more box,
most steps settle in a few. The rows of the boxes that stay are then or-ed into the words still to come, and
the program stops as soon as it has kept enough. Nothing asks the host.

Segments of a few boxes need none of this (`kernels.gpu.nms_at_once`).

Overlaps are computed without fused multiply-adds and divided with correct rounding, so that kept sets are
exact.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import nms_at_once, tuning
from kernels.gpu.language import bitwise_or, intersection_over_union, item_and_block, load_box
from kernels.rounding import float32_at_most


@tuning.tuned(
    configs=[
        triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in [(64, 1), (64, 2), (128, 2), (128, 4)]
    ],
    key=["boxes_bucket", "segments_bucket"],
)
@triton.jit(do_not_specialize=["num_boxes", "num_words", "boxes_bucket", "segments_bucket"])
def _mask_kernel(
    boxes_ptr,  # [S, N, 4] in the order of their scores
    counts_ptr,  # [S] how many of them take part
    mask_ptr,  # [S, N, W] words of 64 bits, as pairs of int32; written from each row's own word on
    threshold: tl.float64,
    num_boxes,
    num_words,
    boxes_bucket,
    segments_bucket,
    BLOCK: tl.constexpr,
):
    """Program (segment, pair of BLOCK rows and a word); pairs count the words from each block's own on."""
    WORDS_PER_BLOCK: tl.constexpr = BLOCK // 64
    blocks = tl.cdiv(num_boxes, BLOCK)
    segment, pair = item_and_block((blocks + 1) // 2 * (blocks + 1) * WORDS_PER_BLOCK)  # see `_pairs`
    block, word = _upper_triangle(pair, blocks, num_words, WORDS_PER_BLOCK)
    count = tl.load(counts_ptr + segment).to(tl.int32)
    if (word * 64 < count) & (block * BLOCK < count):
        row = block * BLOCK + tl.arange(0, BLOCK)
        inside = row < count
        dtype: tl.constexpr = tl.float64 if boxes_ptr.dtype.element_ty == tl.float64 else tl.float32
        box = load_box(boxes_ptr + (segment * num_boxes + row) * 4, dtype, inside)
        limit = tl.full((), threshold, dtype)
        for half in tl.static_range(2):
            first = word * 64 + half * 32
            other = boxes_ptr + (segment * num_boxes + first) * 4
            bits = tl.zeros((BLOCK,), tl.int32)
            for j in range(tl.minimum(tl.maximum(count - first, 0), 32)):
                overlap = intersection_over_union(box, load_box(other + j * 4, dtype))
                bits |= ((overlap > limit) & (first + j > row)).to(tl.int32) << j
            out = mask_ptr + ((segment * num_boxes + row) * num_words + word) * 2 + half
            tl.store(out, bits, mask=inside)


@triton.jit
def _upper_triangle(pair, num_blocks, num_words, WORDS_PER_BLOCK: tl.constexpr):
    """Block and word number `pair` of the upper triangle, by folding it: short rows of pairs lie behind long
    ones.

    Folded rows have num_words + num_folded words; those of the middle row that would come twice get a word
    past the end.
    """
    length = num_blocks * WORDS_PER_BLOCK + WORDS_PER_BLOCK
    fold, place = pair // length, pair % length
    long = (num_blocks - fold) * WORDS_PER_BLOCK
    if place < long:
        block = fold
        word = fold * WORDS_PER_BLOCK + place
    else:
        block = num_blocks - 1 - fold
        word = tl.where(block > fold, block * WORDS_PER_BLOCK + place - long, num_words)
    return block, word


def prune_rows(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Those that read 2 to 16 words a thread at a time; of none, that which reads fewest."""

    def words_of(config: triton.Config) -> float:
        words: int = config.kwargs["ROWS"] * arguments["WORDS"]
        return words / tuning.threads(config, arguments)

    fitting = [config for config in configs if 2 <= words_of(config) <= 16]
    return fitting or [min(configs, key=words_of)]


@tuning.tuned(
    configs=[
        triton.Config({"ROWS": rows}, num_warps=warps)
        for rows, warps in [(8, 1), (16, 1), (16, 4), (8, 4), (4, 8), (4, 16)]
    ],
    key=["WORDS", "max_keep_bucket", "segments_bucket"],
    prune=prune_rows,
)
@triton.jit(do_not_specialize=["num_boxes", "num_words", "max_keep", "max_keep_bucket", "segments_bucket"])
def _reduce_kernel(
    mask_ptr,  # [S, N, W] words of 64 bits
    order_ptr,  # [S, N] index of each box before the sort
    counts_ptr,  # [S]
    keep_ptr,  # [S, max_keep] the result
    kept_ptr,  # [S] how many of it are kept
    num_boxes,
    num_words,
    max_keep,
    max_keep_bucket,
    segments_bucket,
    WORDS: tl.constexpr,  # held in registers: a bucket, and so the same for N and N + 1
    ROWS: tl.constexpr,
):
    """Program: segment."""
    segment = tl.program_id(0).to(tl.int64)
    count = tl.load(counts_ptr + segment).to(tl.int32)
    words = tl.arange(0, WORDS)
    lane = tl.arange(0, 64)
    bit = tl.full((64,), 1, tl.int64) << lane.to(tl.int64)
    suppressed = tl.zeros((WORDS,), tl.int64)
    kept = tl.zeros_like(count)
    step = tl.zeros_like(count)
    while (step * 64 < count) & (kept < max_keep):
        box = step * 64 + lane
        row = mask_ptr + (segment * num_boxes + box) * num_words
        removed = tl.sum(tl.where(words == step, suppressed, 0), 0)
        candidate = ((removed & bit) == 0) & (box < count)
        own = tl.load(row + step, mask=candidate, other=0)
        alive = candidate
        settled = step < 0
        while settled == 0:
            losers = tl.reduce(tl.where(alive, own, 0), 0, bitwise_or)
            still = candidate & ((losers & bit) == 0)
            settled = tl.sum((still != alive).to(tl.int32), 0) == 0
            alive = still
        place = kept + tl.cumsum(alive.to(tl.int32), 0) - 1
        index = tl.load(order_ptr + segment * num_boxes + box, mask=alive, other=0)
        tl.store(keep_ptr + segment * max_keep + place, index, mask=alive & (place < max_keep))
        kept += tl.sum(alive.to(tl.int32), 0)
        if kept < max_keep:
            survivors = tl.sum(tl.where(alive, bit, 0), 0)
            for first in range(0, 64, ROWS):
                member = first + tl.arange(0, ROWS)
                chosen = ((survivors >> member.to(tl.int64)) & 1) != 0
                rows = mask_ptr + (segment * num_boxes + step * 64 + member) * num_words
                later = (words > step) & (words * 64 < count)
                loaded = tl.load(rows[:, None] + words[None, :], mask=chosen[:, None] & later[None, :], other=0)
                suppressed |= tl.reduce(loaded, 0, bitwise_or)
        step += 1
    kept = tl.minimum(kept, max_keep)
    tl.store(kept_ptr + segment, kept.to(tl.int64))
    for first in range(0, max_keep, WORDS):
        place = first + words
        tl.store(keep_ptr + segment * max_keep + place, -1, mask=(place >= kept) & (place < max_keep))


def segmented_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_keep: int, counts: Tensor | None, every: bool
) -> tuple[Tensor, Tensor]:
    """See `kernels.segmented_nms`. boxes: [S, N, 4], scores: [S, N]; keep [S, max_keep], counts [S].

    Args:
        every: whether boxes of every score take part, NaN as the highest; else those with -inf or NaN are absent.
    """
    segments, num_boxes = scores.shape
    is_empty = segments == 0 or num_boxes == 0 or max_keep == 0
    if num_boxes <= nms_at_once.MOST_BOXES and not is_empty:
        return nms_at_once.segmented_nms(boxes, scores, iou_threshold, max_keep, counts, every)
    keep = scores.new_empty((segments, max_keep), dtype=torch.int64)
    kept = scores.new_empty(segments, dtype=torch.int64)
    if is_empty:
        return keep.fill_(-1), kept.zero_()
    if not every:
        scores = torch.where(torch.isnan(scores), -math.inf, scores)
    if counts is not None:
        place = torch.arange(num_boxes, device=scores.device)
        scores = torch.where(place < counts[:, None], scores, -math.inf)
    scores, order = torch.sort(scores, dim=1, descending=True, stable=True)
    if not every:
        taking_part = (scores > -math.inf).sum(dim=1)
    elif counts is None:
        taking_part = kept.new_full((segments,), num_boxes)
    else:
        taking_part = counts.clamp(0, num_boxes)
    boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
    num_words = triton.cdiv(num_boxes, 64)
    mask = scores.new_empty((segments, num_boxes, num_words), dtype=torch.int64)
    buckets = {"segments_bucket": tuning.bucket(segments, 1)}
    with tuning.on_device_of(boxes):
        tuning.launch(
            _mask_kernel,
            lambda meta: (segments * _pairs(num_boxes, meta["BLOCK"]),),
            (boxes, taking_part, mask.view(torch.int32)),
            threshold=iou_threshold if boxes.dtype == torch.float64 else float32_at_most(iou_threshold),
            num_boxes=num_boxes,
            num_words=num_words,
            boxes_bucket=tuning.bucket(num_boxes),
            enable_fp_fusion=False,
            **buckets,
        )
        tuning.launch(
            _reduce_kernel,
            (segments,),
            (mask, order, taking_part, keep, kept),
            num_boxes=num_boxes,
            num_words=num_words,
            max_keep=max_keep,
            max_keep_bucket=tuning.bucket(max_keep),
            WORDS=tuning.bucket(num_words, 32),
            **buckets,
        )
    return keep, kept


def _pairs(num_boxes: int, block: int) -> int:
    """Programs that cover the upper triangle: folded, see `_upper_triangle`."""
    blocks = -(-num_boxes // block)
    return (blocks + 1) // 2 * (blocks + 1) * (block // 64)

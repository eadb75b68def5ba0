"""Boxes from offsets, clipped and filtered, in one launch for all images and segments.

A thread makes a box: 16 bytes of offsets, 16 of the anchor, 16 of the result, and its score. Segments and rows are
strides, so that classes need no copy in front, and an anchor that all classes share stays in the cache. Comparisons are
such that what is not a number stays so, and is left out.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import divide, item_and_block

_MAX_LOG_SCALE = math.log(1000 / 16)


@triton.jit
def _columns(ptr, row, inside, dtype: tl.constexpr):
    """The four numbers of each row [BLOCK] of boxes, read together."""
    place = row[:, None] * 4 + tl.arange(0, 4)[None, :]
    rows = tl.load(ptr + place, mask=inside[:, None], other=0.0).to(dtype)
    firsts, seconds = tl.split(tl.reshape(rows, (row.shape[0], 2, 2)))
    a, c = tl.split(firsts)
    b, d = tl.split(seconds)
    return a, b, c, d


@triton.jit
def _limited(corner, limit):
    corner = tl.where(corner < 0, 0.0, corner)
    return tl.where(corner > limit, limit, corner)


@triton.jit
def _decoded(low, high, shift, scale, limit, most):
    """Both ends of a box along one axis."""
    size = high - low
    center = shift * size + (low + 0.5 * size)
    half = tl.exp(tl.where(scale > most, most, scale)) * size * 0.5
    return _limited(center - half, limit), _limited(center + half, limit)


@tuning.tuned(
    configs=[
        triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in [(128, 4), (256, 4), (256, 8), (64, 2)]
    ],
    key=["COUNTED", "boxes_bucket"],
)
@triton.jit(
    do_not_specialize=[
        "number",
        "segments",
        *(f"{name}_{axis}" for name in ("offsets", "anchors", "scores") for axis in ("image", "segment", "row")),
        "boxes_bucket",
    ]
)
def _decode_kernel(
    offsets_ptr,  # [B, S, N, 4] by strides
    anchors_ptr,  # [B, S, N, 4] by strides
    scores_ptr,  # [B, S, N] by strides
    sizes_ptr,  # [B, 2] height and width
    counts_ptr,  # [B] if COUNTED, else None
    boxes_ptr,  # [B, S, N, 4] the result
    kept_ptr,  # [B, S, N] the result
    number,
    segments,
    offsets_image,  # strides: in boxes of 4, or in scores
    offsets_segment,
    offsets_row,
    anchors_image,
    anchors_segment,
    anchors_row,
    scores_image,
    scores_segment,
    scores_row,
    x_weight: tl.float64,
    y_weight: tl.float64,
    w_weight: tl.float64,
    h_weight: tl.float64,
    most: tl.float64,
    min_size: tl.float64,
    score_threshold: tl.float64,
    boxes_bucket,
    COUNTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (segment of an image, BLOCK boxes)."""
    dtype: tl.constexpr = boxes_ptr.dtype.element_ty
    score_dtype: tl.constexpr = tl.float64 if scores_ptr.dtype.element_ty == tl.float64 else tl.float32
    item, block = item_and_block(tl.cdiv(number, BLOCK))
    image, segment = item // segments, item % segments
    row = block * BLOCK + tl.arange(0, BLOCK)
    inside = row < number
    own = row.to(tl.int64)
    place = image * offsets_image + segment * offsets_segment + own * offsets_row
    dx, dy, dw, dh = _columns(offsets_ptr, place, inside, dtype)
    place = image * anchors_image + segment * anchors_segment + own * anchors_row
    x1, y1, x2, y2 = _columns(anchors_ptr, place, inside, dtype)
    height = tl.load(sizes_ptr + image * 2).to(dtype)
    width = tl.load(sizes_ptr + image * 2 + 1).to(dtype)
    limit = tl.full((), most, dtype)
    dx, dy = divide(dx, tl.full((), x_weight, dtype)), divide(dy, tl.full((), y_weight, dtype))
    dw, dh = divide(dw, tl.full((), w_weight, dtype)), divide(dh, tl.full((), h_weight, dtype))
    left, right = _decoded(x1, x2, dx, dw, width, limit)
    top, bottom = _decoded(y1, y2, dy, dh, height, limit)
    shortest = tl.full((), min_size, dtype)
    place = image * scores_image + segment * scores_segment + own * scores_row
    score = tl.load(scores_ptr + place, mask=inside, other=0.0).to(score_dtype)
    good = (right - left >= shortest) & (bottom - top >= shortest)
    good = good & (score > tl.full((), score_threshold, score_dtype))
    if COUNTED:
        good = good & (row < tl.load(counts_ptr + image))
    result = item * number + own
    boxes = tl.reshape(tl.join(tl.join(left, right), tl.join(top, bottom)), (BLOCK, 4))
    tl.store(boxes_ptr + result[:, None] * 4 + tl.arange(0, 4)[None, :], boxes, mask=inside[:, None])
    kept = tl.where(good, score, float("-inf")).to(kept_ptr.dtype.element_ty)
    tl.store(kept_ptr + result, kept, mask=inside)


def decode_boxes(
    offsets: Tensor,
    anchors: Tensor,
    scores: Tensor,
    image_sizes: Tensor,
    counts: Tensor | None,
    weights: Sequence[float],
    min_size: float,
    score_threshold: float,
) -> tuple[Tensor, Tensor]:
    """See `kernels.decode_boxes`: offsets and anchors [B, S, N, 4], scores [B, S, N]; boxes and scores."""
    images, segments, number, _ = offsets.shape
    compute = torch.promote_types(torch.promote_types(offsets.dtype, anchors.dtype), torch.float32)
    boxes = offsets.new_empty(offsets.shape, dtype=compute)
    kept = scores.new_empty(scores.shape)
    if kept.numel() == 0:
        return boxes, kept
    offsets, anchors = _whole_boxes(offsets), _whole_boxes(anchors)
    axes = ("image", "segment", "row")
    strides = {
        **{f"offsets_{axis}": stride // 4 for axis, stride in zip(axes, offsets.stride(), strict=False)},
        **{f"anchors_{axis}": stride // 4 for axis, stride in zip(axes, anchors.stride(), strict=False)},
        **{f"scores_{axis}": stride for axis, stride in zip(axes, scores.stride(), strict=True)},
    }
    x_weight, y_weight, w_weight, h_weight = weights
    sizes = image_sizes.contiguous()
    with tuning.on_device_of(offsets):
        tuning.launch(
            _decode_kernel,
            lambda meta: (images * segments * triton.cdiv(number, meta["BLOCK"]),),
            (offsets, anchors, scores, sizes, None if counts is None else counts.contiguous(), boxes, kept),
            number=number,
            segments=segments,
            **strides,
            x_weight=float(x_weight),
            y_weight=float(y_weight),
            w_weight=float(w_weight),
            h_weight=float(h_weight),
            most=_MAX_LOG_SCALE,
            min_size=float(min_size),
            score_threshold=float(score_threshold),
            boxes_bucket=tuning.bucket(images * segments * number),
            COUNTED=counts is not None,
            enable_fp_fusion=False,
        )
    return boxes, kept


def _whole_boxes(x: Tensor) -> Tensor:
    """Boxes whose four numbers lie together and where 16 bytes (8 in half precision) can be read at once."""
    last, *others = x.stride()[::-1]
    together = last == 1 and all(stride % 4 == 0 for stride in others)
    return x if together and x.data_ptr() % (4 * x.element_size()) == 0 else x.contiguous()

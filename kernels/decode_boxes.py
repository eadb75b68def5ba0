"""Predicted offsets to boxes on the image, with the scores of those to leave out struck."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.checks import FLOATS, INTEGERS, check_number, check_tensor, check_values, is_list, is_positive
from kernels.dispatch import asked_for, run, values_may_be_read


def decode_boxes(
    offsets: Tensor,
    anchors: Tensor,
    scores: Tensor,
    image_sizes: Tensor,
    counts: Tensor | None = None,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    min_size: float = 0.0,
    score_threshold: float = float("-inf"),
) -> tuple[Tensor, Tensor]:
    """Decodes, clips and filters boxes (R-CNN, appendix C) of all images and segments at once, at a fixed size.

    A segment is what non-maximum suppression looks at together: a level of the pyramid for proposals, a class for
    detections. Widths and heights grow at most 1000 / 16 fold, as everywhere. There is no gradient.

    Args:
        offsets: [B, N, 4] or [B, S, N, 4] as dx, dy, dw, dh times `weights`; S are segments. A view as
            `offsets.transpose(1, 2)` is not copied.
        anchors: x1, y1, x2, y2 in a shape that broadcasts to that of `offsets`, as [N, 4] or [B, 1, N, 4].
        scores: [B, N] or [B, S, N].
        image_sizes: height and width of each image [B, 2], integers or floating point, 0 or more.
        counts: image b has anchors in its first counts[b] places of each segment [B], integers from 0 to N; None
            for all.
        weights: what dx, dy, dw and dh were multiplied with, above 0; torchvision's 1, 1, 1, 1 or 10, 10, 5, 5.
        min_size: boxes with a side shorter than this after clipping are left out.
        score_threshold: those with a score that is not above this are left out; any number.

    Returns:
        Boxes within the images, contiguous, of the shape of `offsets` in float32 (float64 if offsets or anchors are);
        the scores, minus infinity for what is left out, also where a side of the box or the score is not a number.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    _check(offsets, anchors, scores, image_sizes, counts, weights, min_size, score_threshold)
    shape = offsets.shape
    boxes, kept = _decode_boxes(
        _in_segments(offsets.detach()),
        _in_segments(anchors.detach().expand(shape)),
        _in_segments(scores.detach()[..., None])[..., 0],
        image_sizes,
        counts,
        list(weights),
        min_size,
        score_threshold,
        asked_for(),
    )
    return boxes.view(shape), kept.view(shape[:-1])


def _in_segments(x: Tensor) -> Tensor:
    """[B, S, N, C] of that or [B, N, C]."""
    return x if x.ndim == 4 else x[:, None]


def _check(
    offsets: Tensor,
    anchors: Tensor,
    scores: Tensor,
    image_sizes: Tensor,
    counts: Tensor | None,
    weights: Sequence[float],
    min_size: float,
    score_threshold: float,
) -> None:
    check_tensor("offsets", offsets, ("B", "N", 4), ("B", "S", "N", 4))
    shape, device = offsets.shape, offsets.device
    check_tensor("anchors", anchors, device=device)
    fits = 2 <= anchors.ndim <= offsets.ndim and anchors.shape[-1] == 4
    fits = fits and all(
        own in (1, wanted) for own, wanted in zip(reversed(anchors.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"anchors is {tuple(anchors.shape)} in {anchors.dtype}; it must broadcast to {tuple(shape)}, 4 last"
        )
    check_tensor("scores", scores, shape[:-1], device=device)
    check_tensor("image_sizes", image_sizes, (shape[0], 2), dtypes=INTEGERS + FLOATS, device=device)
    if counts is not None:
        check_tensor("counts", counts, (shape[0],), dtypes=INTEGERS, device=device)
    if not is_list(weights) or len(weights) != 4 or not all(map(is_positive, weights)):
        raise ValueError(f"weights is {weights!r}; it must be 4 finite numbers above 0")
    check_number("min_size", min_size, 0)
    check_number("score_threshold", score_threshold, -math.inf)


@torch.library.custom_op("mrcnn::decode_boxes", mutates_args=())
def _decode_boxes(
    offsets: Tensor,
    anchors: Tensor,
    scores: Tensor,
    image_sizes: Tensor,
    counts: Tensor | None,
    weights: Sequence[float],
    min_size: float,
    score_threshold: float,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    if values_may_be_read(image_sizes, implementation):
        check_values("image_sizes", image_sizes, 0, math.inf)
        if counts is not None:
            check_values("counts", counts, 0, offsets.shape[2])
    arguments = (offsets, anchors, scores, image_sizes, counts, weights, min_size, score_threshold)
    boxes, kept = run(implementation, "decode_boxes", "decode_boxes", offsets.device, *arguments)
    return boxes, kept


@_decode_boxes.register_fake
def _(offsets: Tensor, anchors: Tensor, scores: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(offsets.dtype, anchors.dtype), torch.float32)
    return offsets.new_empty(offsets.shape, dtype=dtype), scores.new_empty(scores.shape)

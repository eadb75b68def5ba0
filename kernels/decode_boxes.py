"""Predicted offsets to boxes on the image, with the scores of those to leave out struck."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import implementation_for, run


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
        image_sizes: height and width of each image [B, 2], integers or floating point.
        counts: image b has anchors in its first counts[b] places of each segment [B], integers; None for all.
        weights: what dx, dy, dw and dh were multiplied with; torchvision's 1, 1, 1, 1 or 10, 10, 5, 5.
        min_size: boxes with a side shorter than this after clipping are left out.
        score_threshold: those with a score that is not above this are left out.

    Returns:
        Boxes within the images, contiguous, of the shape of `offsets` in float32 (float64 if offsets or anchors are);
        the scores, minus infinity for what is left out, also where a side of the box or the score is not a number.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    _check(offsets, anchors, scores, image_sizes, counts, weights, min_size)
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
        implementation_for(offsets),
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
) -> None:
    if offsets.ndim not in (3, 4) or offsets.shape[-1] != 4 or not offsets.is_floating_point():
        raise ValueError(
            f"offsets is {tuple(offsets.shape)} in {offsets.dtype}; it must be B x N x 4 or B x S x N x 4 in floating "
            "point"
        )
    shape, images = offsets.shape, offsets.shape[0]
    fits = 2 <= anchors.ndim <= offsets.ndim and anchors.shape[-1] == 4
    fits = fits and all(
        own in (1, wanted) for own, wanted in zip(reversed(anchors.shape), reversed(shape), strict=False)
    )
    if not fits or not anchors.is_floating_point():
        raise ValueError(
            f"anchors is {tuple(anchors.shape)} in {anchors.dtype}; it must broadcast to {tuple(shape)} in floating "
            "point"
        )
    if scores.shape != shape[:-1] or not scores.is_floating_point():
        raise ValueError(
            f"scores is {tuple(scores.shape)} in {scores.dtype}; it must be {tuple(shape[:-1])} in floating point"
        )
    if image_sizes.shape != (images, 2) or image_sizes.dtype == torch.bool:
        raise ValueError(f"image_sizes is {tuple(image_sizes.shape)} in {image_sizes.dtype}; it must be {images} x 2")
    if counts is not None and (counts.shape != (images,) or counts.is_floating_point() or counts.dtype == torch.bool):
        raise ValueError(f"counts is {tuple(counts.shape)} in {counts.dtype}; it must be {images} integers")
    if not min_size >= 0:
        raise ValueError(f"min_size is {min_size}; it must be 0 or more")
    if len(weights) != 4 or not all(weight > 0 for weight in weights):
        raise ValueError(f"weights is {tuple(weights)}; it must be 4 numbers above 0")
    for name, value in {"anchors": anchors, "scores": scores, "image_sizes": image_sizes, "counts": counts}.items():
        if value is not None and value.device != offsets.device:
            raise ValueError(f"{name} is on {value.device}; it must be on the offsets' device, {offsets.device}")


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
    arguments = (offsets, anchors, scores, image_sizes, counts, weights, min_size, score_threshold)
    boxes, kept = run(implementation, "decode_boxes", "decode_boxes", offsets.device, *arguments)
    return boxes, kept


@_decode_boxes.register_fake
def _(offsets: Tensor, anchors: Tensor, scores: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(offsets.dtype, anchors.dtype), torch.float32)
    return offsets.new_empty(offsets.shape, dtype=dtype), scores.new_empty(scores.shape)

"""The best ground truth of each anchor, and the anchors that are best for some ground truth."""

import torch
from torch import Tensor

from kernels.dispatch import implementation_for, run, values_may_be_read


def match_boxes(
    anchors: Tensor, gt_boxes: Tensor, gt_counts: Tensor, with_forced: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Matches anchors to ground truth by IoU (Faster R-CNN, section 3.1.2) without a matrix of all pairs.

    For each anchor the ground truth that overlaps it most, of equal ones that with the lowest index. A match is forced
    where an anchor's IoU with some ground truth, of whatever index, is the best that this ground truth has with any
    anchor, and above 0; all anchors that share the best are forced matches. An IoU that is not a number counts as 0, as
    in Detectron2: a box with a NaN or without area matches nothing.

    There is no gradient.

    Args:
        anchors: [N, 4], the same for all images, or [B, N, 4], as x1, y1, x2, y2.
        gt_boxes: [B, G, 4]; IoU is computed in float32 (float64 if either is float64).
        gt_counts: image b has ground truth in its first gt_counts[b] places [B], any integers from 0 to G.
        with_forced: whether forced matches are wanted; without, the third result is False throughout, for about half
            the work.

    Returns:
        Index into G of each anchor's best ground truth [B, N], int64; its IoU [B, N] in float32 (float64 for float64);
        whether the anchor is a forced match [B, N], bool. In an image without ground truth they are 0, -1 and False:
        an IoU of -1 is below every threshold.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    _check(anchors, gt_boxes, gt_counts)
    result: tuple[Tensor, Tensor, Tensor] = _match_boxes(
        anchors.detach(), gt_boxes.detach(), gt_counts, with_forced, implementation_for(anchors)
    )
    return result


def _check(anchors: Tensor, gt_boxes: Tensor, gt_counts: Tensor) -> None:
    if gt_boxes.ndim != 3 or gt_boxes.shape[2] != 4 or not gt_boxes.is_floating_point():
        raise ValueError(
            f"gt_boxes is {tuple(gt_boxes.shape)} in {gt_boxes.dtype}; it must be B x G x 4 in floating point"
        )
    images = gt_boxes.shape[0]
    shared = anchors.ndim == 2
    if (
        not (shared or (anchors.ndim == 3 and anchors.shape[0] == images))
        or anchors.shape[-1] != 4
        or not anchors.is_floating_point()
    ):
        raise ValueError(
            f"anchors is {tuple(anchors.shape)} in {anchors.dtype}; it must be N x 4 or {images} x N x 4 in floating "
            "point"
        )
    if gt_counts.shape != (images,) or gt_counts.is_floating_point() or gt_counts.dtype == torch.bool:
        raise ValueError(f"gt_counts is {tuple(gt_counts.shape)} in {gt_counts.dtype}; it must be {images} integers")
    for name, value in {"gt_boxes": gt_boxes, "gt_counts": gt_counts}.items():
        if value.device != anchors.device:
            raise ValueError(f"{name} is on {value.device}; it must be on the anchors' device, {anchors.device}")


@torch.library.custom_op("mrcnn::match_boxes", mutates_args=())
def _match_boxes(
    anchors: Tensor, gt_boxes: Tensor, gt_counts: Tensor, with_forced: bool, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    if values_may_be_read(gt_counts):
        _check_counts(gt_counts, gt_boxes.shape[1])
    arguments = (anchors, gt_boxes, gt_counts, with_forced)
    gt_index, overlap, forced = run(implementation, "match_boxes", "match_boxes", anchors.device, *arguments)
    return gt_index, overlap, forced


def _check_counts(gt_counts: Tensor, capacity: int) -> None:
    """Only values tell."""
    outside = (gt_counts < 0) | (gt_counts > capacity)
    if outside.any():
        raise ValueError(f"gt_counts holds {gt_counts[outside][0].item()}; it must be from 0 to {capacity}")


@_match_boxes.register_fake
def _(
    anchors: Tensor, gt_boxes: Tensor, gt_counts: Tensor, with_forced: bool, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (gt_boxes.shape[0], anchors.shape[-2])
    dtype = torch.promote_types(torch.promote_types(anchors.dtype, gt_boxes.dtype), torch.float32)
    return (
        anchors.new_empty(shape, dtype=torch.int64),
        anchors.new_empty(shape, dtype=dtype),
        anchors.new_empty(shape, dtype=torch.bool),
    )

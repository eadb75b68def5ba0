"""The best ground truth of each anchor, and the anchors that are best for some ground truth."""

import torch
from torch import Tensor

from kernels.checks import INTEGERS, check_flag, check_tensor, check_values
from kernels.dispatch import asked_for, run, values_may_be_read


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
    check_tensor("anchors", anchors, ("N", 4), ("B", "N", 4))
    images = anchors.shape[0] if anchors.ndim == 3 else "B"
    check_tensor("gt_boxes", gt_boxes, (images, "G", 4), device=anchors.device)
    check_tensor("gt_counts", gt_counts, gt_boxes.shape[:1], dtypes=INTEGERS, device=anchors.device)
    check_flag("with_forced", with_forced)
    result: tuple[Tensor, Tensor, Tensor] = _match_boxes(
        anchors.detach(), gt_boxes.detach(), gt_counts, bool(with_forced), asked_for()
    )
    return result


@torch.library.custom_op("mrcnn::match_boxes", mutates_args=())
def _match_boxes(
    anchors: Tensor, gt_boxes: Tensor, gt_counts: Tensor, with_forced: bool, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    if values_may_be_read(gt_counts, implementation):
        check_values("gt_counts", gt_counts, 0, gt_boxes.shape[1])
    arguments = (anchors, gt_boxes, gt_counts, with_forced)
    gt_index, overlap, forced = run(implementation, "match_boxes", "match_boxes", anchors.device, *arguments)
    return gt_index, overlap, forced


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

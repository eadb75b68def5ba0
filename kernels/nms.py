"""Non-maximum suppression: of one list of boxes, class by class, and of many segments at a fixed size."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kernels.checks import INTEGERS, check_number, check_tensor, check_values, check_whole
from kernels.dispatch import asked_for, run, values_may_be_read

# Boxes with padding that cost less than launches for them alone.
_LITTLE = 1 << 14


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keeps the best of boxes that overlap; torchvision.ops.nms.

    In descending score, a box is dropped if its IoU with a kept one is above the threshold. Of equal scores the
    lower index comes first; a score of NaN is the highest, as in torch.sort.

    Args:
        boxes: [N, 4] as x1, y1, x2, y2; IoU is computed in float32 (float64 for float64).
        scores: [N].
        iou_threshold: 0 to 1.

    Returns:
        Indices of the kept boxes [K], int64, by descending score. K depends on the values, so a GPU has to be waited
        for; `segmented_nms` has a fixed size.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    _check(boxes, scores, iou_threshold, ("N", 4))
    kept: Tensor = _nms(boxes, scores, float(iou_threshold), asked_for())
    return kept


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` of each class on its own; torchvision.ops.batched_nms.

    Classes are kept apart as segments and never through shifted coordinates, which cost precision.

    Args:
        boxes: [N, 4] as x1, y1, x2, y2.
        scores: [N].
        idxs: class of each box [N], any integers, or bool.
        iou_threshold: 0 to 1.

    Returns:
        Indices of the kept boxes [K], int64, by descending score and, where equal, ascending index.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    _check(boxes, scores, iou_threshold, ("N", 4))
    check_tensor("idxs", idxs, scores.shape, dtypes=(*INTEGERS, torch.bool), device=boxes.device)
    kept: Tensor = _batched_nms(boxes, scores, idxs, float(iou_threshold), asked_for())
    return kept


def segmented_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_keep: int, counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`nms` of S segments (image x level, image x class) at a fixed size, without a wait for the GPU.

    Args:
        boxes: [S, N, 4] as x1, y1, x2, y2, in any order.
        scores: [S, N]; a box with score -inf or NaN is absent.
        iou_threshold: 0 to 1.
        max_keep: stops in each segment after so many.
        counts: segment s has boxes only in its first counts[s] places [S], any integers from 0 to N; all N if None.

    Returns:
        Indices into N of the kept boxes [S, max_keep], int64, by descending score, with -1 in the places left over, and
        how many were kept [S], int64.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    _check(boxes, scores, iou_threshold, ("S", "N", 4))
    check_whole("max_keep", max_keep, 0)
    if counts is not None:
        check_tensor("counts", counts, boxes.shape[:1], dtypes=INTEGERS, device=boxes.device)
    result: tuple[Tensor, Tensor] = _segmented_nms(boxes, scores, float(iou_threshold), max_keep, counts, asked_for())
    return result


def _check(boxes: Tensor, scores: Tensor, iou_threshold: float, shape: tuple[int | str, ...]) -> None:
    check_tensor("boxes", boxes, shape)
    check_tensor("scores", scores, boxes.shape[:-1], device=boxes.device)
    check_number("iou_threshold", iou_threshold, 0, 1)


@torch.library.custom_op("mrcnn::segmented_nms", mutates_args=())
def _segmented_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_keep: int,
    counts: Tensor | None,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    if counts is not None and values_may_be_read(counts, implementation):
        check_values("counts", counts, 0, boxes.shape[1])
    arguments = (boxes, scores, iou_threshold, max_keep, counts, False)
    keep, kept_counts = run(implementation, "nms", "segmented_nms", boxes.device, *arguments)
    return keep, kept_counts


@_segmented_nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, max_keep: int, *args: Any) -> tuple[Tensor, Tensor]:
    segments = boxes.shape[0]
    return boxes.new_empty((segments, max_keep), dtype=torch.int64), boxes.new_empty(segments, dtype=torch.int64)


@torch.library.custom_op("mrcnn::nms", mutates_args=())
def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, implementation: str) -> Tensor:
    arguments = (boxes[None], scores[None], iou_threshold, boxes.shape[0], None, True)
    keep, count = run(implementation, "nms", "segmented_nms", boxes.device, *arguments)
    kept: Tensor = keep[0, : int(count[0])].clone()
    return kept


@_nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, implementation: str) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.custom_op("mrcnn::batched_nms", mutates_args=())
def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, implementation: str) -> Tensor:
    if boxes.shape[0] == 0:
        return boxes.new_empty(0, dtype=torch.int64)
    by_class = torch.sort(idxs.long(), stable=True)
    _, sizes = torch.unique_consecutive(by_class.values, return_counts=True)
    starts = sizes.cumsum(0) - sizes
    by_size = torch.sort(sizes, descending=True)
    nobody = len(scores)
    flags = torch.zeros(nobody + 1, dtype=torch.bool, device=boxes.device)
    for group, longest in _of_like_size(by_size.values.tolist()):
        own = by_size.indices[group]
        place = starts[own, None] + torch.arange(longest, device=boxes.device)  # of a short class, other boxes as well
        index = by_class.indices[place.clamp_(max=nobody - 1)]
        arguments = (boxes[index], scores[index], iou_threshold, longest, sizes[own], True)
        keep, _ = run(implementation, "nms", "segmented_nms", boxes.device, *arguments)
        flags[torch.where(keep >= 0, index.gather(1, keep.clamp(min=0)), nobody)] = True
    kept = torch.nonzero(flags[:nobody]).squeeze(1)
    return kept[torch.sort(scores[kept], descending=True, stable=True).indices]


def _of_like_size(sizes: list[int]) -> Iterator[tuple[slice, int]]:
    """Slices of descending sizes of classes, and the largest in each, to which its others are padded.

    At most half of a slice is padding, or there is little of it. So the comparisons take no more memory than those of
    two lists of all boxes would, where one large class among many small ones would else be too much.
    """
    start, total = 0, 0
    for stop, size in enumerate(sizes):
        total += size
        if (stop + 1 - start) * sizes[start] > max(2 * total, _LITTLE):
            yield slice(start, stop), sizes[start]
            start, total = stop, size
    yield slice(start, len(sizes)), sizes[start]


@_batched_nms.register_fake
def _(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, implementation: str) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)

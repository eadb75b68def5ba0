"""The mask loss (Mask R-CNN, section 3): ground truth cropped to each RoI, class channel, binary cross-entropy."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.checks import INDEX, check_sampling_ratio, check_tensor, check_values
from kernels.dispatch import asked_for, run, values_may_be_read
from kernels.masks import PackedMasks, Polygons, check_masks
from kernels.memory_format import empty_map, taken_channels_last
from kernels.rasterize import rasterized


class MaskCounts(NamedTuple):
    """Cells of all RoIs with weight, a number each in int64; as tensors, so that no value is waited for.

    Attributes:
        cells: all.
        positives: whose target is at least 0.5.
        false_positives: whose logit is positive though their target is below 0.5.
        false_negatives: whose logit is not positive though their target is at least 0.5.
    """

    cells: Tensor
    positives: Tensor
    false_positives: Tensor
    false_negatives: Tensor

    def accuracy(self) -> Tensor:
        """Right cells among all, in float32; 1 if there are none. Detectron2's mask_rcnn/accuracy."""
        return 1 - (self.false_positives + self.false_negatives) / self.cells.clamp(min=1)

    def false_positive_rate(self) -> Tensor:
        """False positives among the cells that are not positive. Detectron2's mask_rcnn/false_positive."""
        return self.false_positives / (self.cells - self.positives).clamp(min=1)

    def false_negative_rate(self) -> Tensor:
        """False negatives among the positives. Detectron2's mask_rcnn/false_negative."""
        return self.false_negatives / self.positives.clamp(min=1)


def mask_loss(
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor,
    gt_masks: Tensor | PackedMasks | Polygons,
    gt_index: Tensor,
    weights: Tensor | None = None,
    sampling_ratio: int = -1,
) -> Tensor:
    """Mean binary cross-entropy between each RoI's class channel and the ground truth under its box.

    The target is RoIAlign of the mask, not thresholded, as torchvision's `maskrcnn_loss` has it. Masks are sampled as
    they are: no float copy, no tensor of targets. The gradient goes to `logits` only.

    Args:
        logits: [K, C, M, M] in float32, float16, bfloat16 or float64.
        labels: which channel each RoI is judged by [K], int64; with C = 1 (class-agnostic) it is channel 0.
        boxes: [K, 4] as x1, y1, x2, y2 in pixels of `gt_masks`.
        gt_masks: [G, H, W] of 0 and 1 only, uint8 or bool, H and W at least 1; or the same with a bit a pixel, see
            `pack_masks`; or polygons, which count as the masks that pycocotools makes of them. A GPU draws those within
            their extents only.
        gt_index: which mask belongs to each RoI [K], int64.
        weights: [K], 0 or more; 0 leaves a RoI out, whatever else it holds. All 1 if None.
        sampling_ratio: see `roi_align`.

    Returns:
        The mean over RoIs, by weight, and pixels: a scalar in float32 (float64 for float64); 0 without any weight. It
        has a gradient by the logits, and that has none: asked for one it raises.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    loss, _, _ = _run(logits, labels, boxes, gt_masks, gt_index, weights, sampling_ratio, False)
    return loss


def mask_loss_with_counts(
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor,
    gt_masks: Tensor | PackedMasks | Polygons,
    gt_index: Tensor,
    weights: Tensor | None = None,
    sampling_ratio: int = -1,
) -> tuple[Tensor, MaskCounts]:
    """`mask_loss`, and how many cells are right and wrong, counted in the same pass over the logits."""
    loss, _, counts = _run(logits, labels, boxes, gt_masks, gt_index, weights, sampling_ratio, True)
    return loss, MaskCounts(*counts.unbind())


def _run(
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor,
    gt_masks: Tensor | PackedMasks | Polygons,
    gt_index: Tensor,
    weights: Tensor | None,
    sampling_ratio: int,
    counted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check_tensor("logits", logits, ("K", "C", "M", "M"), filled=("C", "M"))
    check_targets(logits, labels, boxes, gt_masks, gt_index, weights, sampling_ratio)
    if weights is None:
        weights = boxes.new_ones(boxes.shape[0], dtype=torch.float32)
    implementation = asked_for()
    masks, width, extents = sampled_masks(gt_masks, implementation)
    targets = labels, boxes.detach(), masks, gt_index, weights.detach()
    result: tuple[Tensor, Tensor, Tensor] = _mask_loss(
        logits, *targets, sampling_ratio, width, extents, counted, implementation
    )
    return result


def sampled_masks(
    gt_masks: Tensor | PackedMasks | Polygons, implementation: str
) -> tuple[Tensor, int | None, Tensor | None]:
    """Pixels or words of bits; the width of the masks if these are words; and the extents if there are."""
    if isinstance(gt_masks, Polygons):
        bits, extents = rasterized(gt_masks, False, implementation)
        return bits, gt_masks.width, extents
    if isinstance(gt_masks, PackedMasks):
        return gt_masks.bits, gt_masks.width, None
    return gt_masks, None, None


def check_targets(
    rois: Tensor,
    labels: Tensor,
    boxes: Tensor,
    gt_masks: Tensor | PackedMasks | Polygons,
    gt_index: Tensor,
    weights: Tensor | None,
    sampling_ratio: int,
) -> None:
    """What belongs to each of `rois` [K, ...]."""
    number, device = rois.shape[0], rois.device
    check_tensor("labels", labels, (number,), dtypes=INDEX, device=device)
    check_tensor("boxes", boxes, (number, 4), device=device)
    check_tensor("gt_index", gt_index, (number,), dtypes=INDEX, device=device)
    if weights is not None:
        check_tensor("weights", weights, (number,), device=device)
    check_masks("gt_masks", gt_masks, device)
    check_sampling_ratio(sampling_ratio)


def check_target_values(labels: Tensor, classes: int, gt_masks: Tensor, gt_index: Tensor, weights: Tensor) -> None:
    """Only values tell; with one class its label may be anything."""
    check_values("weights", weights, 0, math.inf)
    used = weights != 0
    if classes > 1:
        check_values("labels", labels, 0, classes - 1, used)
    check_values("gt_index", gt_index, 0, gt_masks.shape[0] - 1, used)
    if gt_masks.dtype == torch.uint8 and gt_masks.numel():
        check_values("gt_masks", gt_masks.max(), 0, 1)


@torch.library.custom_op("mrcnn::mask_loss", mutates_args=())
def _mask_loss(
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor,
    gt_masks: Tensor,
    gt_index: Tensor,
    weights: Tensor,
    sampling_ratio: int,
    width: int | None,
    extents: Tensor | None,
    counted: bool,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its derivative with respect to each RoI's class channel [K, M, M], and the counts [4], or none [0]."""
    if values_may_be_read(labels, implementation):
        check_target_values(labels, logits.shape[1], gt_masks, gt_index, weights)
    arguments = (logits, labels, boxes, gt_masks, gt_index, weights, sampling_ratio, width, extents)
    if counted:
        loss, residual, counts = run(implementation, "mask_loss", "mask_loss_with_counts", logits.device, *arguments)
    else:
        loss, residual = run(implementation, "mask_loss", "mask_loss", logits.device, *arguments)
        counts = logits.new_empty(0, dtype=torch.int64)
    return loss, residual, counts


@_mask_loss.register_fake
def _(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, counted, _ = args
    dtype = torch.promote_types(logits.dtype, torch.float32)
    number, _, size, _ = logits.shape
    counts = logits.new_empty(4 if counted else 0, dtype=torch.int64)
    return logits.new_empty((), dtype=dtype), logits.new_empty((number, size, size), dtype=dtype), counts


@torch.library.custom_op("mrcnn::mask_loss_backward", mutates_args=())
def _mask_loss_backward(
    grad_loss: Tensor,
    residual: Tensor,
    labels: Tensor,
    num_channels: int,
    dtype: torch.dtype,
    channels_last: bool,
    implementation: str,
) -> Tensor:
    arguments = (grad_loss, residual, labels, num_channels, dtype, channels_last)
    grad: Tensor = run(implementation, "mask_loss", "mask_loss_backward", residual.device, *arguments)
    return grad


@_mask_loss_backward.register_fake
def _(
    grad_loss: Tensor,
    residual: Tensor,
    labels: Tensor,
    num_channels: int,
    dtype: torch.dtype,
    channels_last: bool,
    implementation: str,
) -> Tensor:
    number, size, _ = residual.shape
    return empty_map(residual, (number, num_channels, size, size), channels_last, dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, labels, *_, ctx.implementation = inputs
    _, residual, counts = output
    ctx.mark_non_differentiable(residual, counts)
    ctx.set_materialize_grads(False)  # none for the residual, which would be zeros to fill
    ctx.save_for_backward(residual, labels)
    ctx.num_channels, ctx.dtype = logits.shape[1], logits.dtype
    ctx.channels_last = taken_channels_last(logits)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 11
    residual, labels = ctx.saved_tensors
    grad = _mask_loss_backward(
        grad_loss, residual, labels, ctx.num_channels, ctx.dtype, ctx.channels_last, ctx.implementation
    )
    if torch.is_grad_enabled():  # with create_graph: what depends on the logits is saved as a constant
        grad = _DifferentiableOnce.apply(grad.requires_grad_())
    return (grad, *[None] * 10)


class _DifferentiableOnce(torch.autograd.Function):
    """Unchanged, but a second derivative is refused instead of being 0."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Tensor:
        raise RuntimeError("mask_loss is differentiable once: its gradient was asked for a gradient")


_mask_loss.register_autograd(_backward, setup_context=_setup_context)

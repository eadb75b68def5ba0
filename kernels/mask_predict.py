"""The last 1x1 convolution of the mask branch for the wanted class only (Mask R-CNN, section 3), and what follows."""

from typing import Any

import torch
from torch import Tensor

from kernels.checks import INDEX, check_tensor, check_values
from kernels.dispatch import asked_for, run, values_may_be_read
from kernels.mask_loss import MaskCounts, check_target_values, check_targets, sampled_masks
from kernels.masks import PackedMasks, Polygons
from kernels.memory_format import dense, empty_map, taken_channels_last


def mask_predict(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Mask probabilities of each RoI's class: sigmoid(weight[label] . features + bias[label]) at each pixel.

    A convolution for all classes would compute, and keep, as many times more as there are classes. Sums are kept in
    float32 whatever the dtypes (float64 for float64 features). Gradients are the same bits at each run.

    Args:
        features: what the convolution is applied to, in float32, float16, bfloat16 or float64: [K, C, M, M], channels
            last or contiguous; or [K, M/2, M/2, 2, 2, C], as a 2x2 transposed convolution with stride 2 leaves them
            when computed as a matrix product over pixels, the places within each 2x2 block being row and column.
        weight: [classes, C] in floating point.
        bias: [classes] in floating point.
        labels: class of each RoI [K], int64; with one class (class-agnostic) it is that one. On a GPU, where no value
            is asked for, a label that is no class gives zeros.

    Returns:
        Probabilities [K, M, M] in float32 (float64 for float64 features).

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    _check(features, weight, bias)
    check_tensor("labels", labels, features.shape[:1], dtypes=INDEX, device=features.device)
    labels = _class_of(labels, weight)
    result: Tensor = _mask_predict(features, weight, bias, labels, asked_for())
    return result


def mask_predict_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    boxes: Tensor,
    gt_masks: Tensor | PackedMasks | Polygons,
    gt_index: Tensor,
    weights: Tensor | None = None,
    sampling_ratio: int = -1,
) -> Tensor:
    """`mask_loss` of the logits that `mask_predict` makes probabilities of, with gradients by what they are made of.

    Gradients go to `features`, `weight` and `bias` and are the same bits at each run.

    Args:
        features, weight, bias, labels: see `mask_predict`.
        boxes: [K, 4] as x1, y1, x2, y2 in pixels of `gt_masks`.
        gt_masks: see `mask_loss`.
        gt_index: which mask belongs to each RoI [K], int64.
        weights: [K], 0 or more; 0 leaves a RoI out, whatever else it holds. All 1 if None.
        sampling_ratio: see `roi_align`.

    Returns:
        The mean over RoIs, by weight, and pixels: a scalar in float32 (float64 for float64 features); 0 without any
        weight.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    loss, _ = _run_loss(features, weight, bias, labels, boxes, gt_masks, gt_index, weights, sampling_ratio, False)
    return loss


def mask_predict_loss_with_counts(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    boxes: Tensor,
    gt_masks: Tensor | PackedMasks | Polygons,
    gt_index: Tensor,
    weights: Tensor | None = None,
    sampling_ratio: int = -1,
) -> tuple[Tensor, MaskCounts]:
    """`mask_predict_loss`, and how many cells are right and wrong, counted in the same pass over the logits."""
    loss, counts = _run_loss(features, weight, bias, labels, boxes, gt_masks, gt_index, weights, sampling_ratio, True)
    return loss, MaskCounts(*counts.unbind())


def _run_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    boxes: Tensor,
    gt_masks: Tensor | PackedMasks | Polygons,
    gt_index: Tensor,
    weights: Tensor | None,
    sampling_ratio: int,
    counted: bool,
) -> tuple[Tensor, Tensor]:
    _check(features, weight, bias)
    check_targets(features, labels, boxes, gt_masks, gt_index, weights, sampling_ratio)
    if weights is None:
        weights = boxes.new_ones(boxes.shape[0], dtype=torch.float32)
    implementation = asked_for()
    labels = torch.where(weights != 0, _class_of(labels, weight), -1)
    masks, width, extents = sampled_masks(gt_masks, implementation)
    targets = (boxes.detach(), masks, gt_index, weights.detach(), sampling_ratio, width, extents)
    loss, _, counts = _mask_predict_loss(features, weight, bias, labels, *targets, counted, implementation)
    return loss, counts


def _class_of(labels: Tensor, weight: Tensor) -> Tensor:
    return torch.zeros_like(labels) if weight.shape[0] == 1 else labels


def _as_stored(features: Tensor) -> Tensor:
    """Without gaps in memory; copied only if there are some."""
    return features.contiguous() if features.ndim == 6 else dense(features, taken_channels_last(features))


def _check(features: Tensor, weight: Tensor, bias: Tensor) -> None:
    blocks = ("K", "M/2", "M/2", 2, 2, "C")
    check_tensor("features", features, ("K", "C", "M", "M"), blocks, filled=("C", "M", "M/2"))
    channels = features.shape[1] if features.ndim == 4 else features.shape[5]
    check_tensor("weight", weight, ("classes", channels), device=features.device, filled=("classes",))
    check_tensor("bias", bias, weight.shape[:1], device=features.device)


def _side(features: Tensor) -> int:
    """M, of either form of features."""
    return 2 * features.shape[1] if features.ndim == 6 else features.shape[2]


@torch.library.custom_op("mrcnn::mask_predict", mutates_args=())
def _mask_predict(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, implementation: str) -> Tensor:
    if values_may_be_read(labels, implementation):
        check_values("labels", labels, 0, weight.shape[0] - 1)
    arguments = (_as_stored(features), weight, bias, labels)
    result: Tensor = run(implementation, "mask_predict", "mask_predict", features.device, *arguments)
    return result


@_mask_predict.register_fake
def _(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, implementation: str) -> Tensor:
    side = _side(features)
    dtype = torch.promote_types(features.dtype, torch.float32)
    return features.new_empty((features.shape[0], side, side), dtype=dtype)


@torch.library.custom_op("mrcnn::mask_predict_loss", mutates_args=())
def _mask_predict_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
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
    """The loss, its derivative by each RoI's logits [K, M, M], and the counts [4], or none [0]."""
    if values_may_be_read(labels, implementation):
        check_target_values(labels, weight.shape[0], gt_masks, gt_index, weights)
    # One channel fits all labels: a RoI whose label is no class is left out by an index that is no mask's.
    index = torch.where((labels >= 0) & (labels < weight.shape[0]), gt_index, -1)
    device, layer = features.device, (_as_stored(features), weight, bias, labels)
    logits = run(implementation, "mask_predict", "class_logits", device, *layer)[:, None]
    arguments = (logits, labels, boxes, gt_masks, index, weights, sampling_ratio, width, extents)
    if counted:
        loss, residual, counts = run(implementation, "mask_loss", "mask_loss_with_counts", device, *arguments)
    else:
        loss, residual = run(implementation, "mask_loss", "mask_loss", device, *arguments)
        counts = features.new_empty(0, dtype=torch.int64)
    return loss, residual, counts


@_mask_predict_loss.register_fake
def _(features: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, counted, _ = args
    side = _side(features)
    dtype = torch.promote_types(features.dtype, torch.float32)
    counts = features.new_empty(4 if counted else 0, dtype=torch.int64)
    return features.new_empty((), dtype=dtype), features.new_empty((features.shape[0], side, side), dtype=dtype), counts


@torch.library.custom_op("mrcnn::mask_predict_backward", mutates_args=())
def _mask_predict_backward(
    grad_logits: Tensor, features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of features, weight and bias; a RoI whose label is no class has none and adds none."""
    arguments = (grad_logits, _as_stored(features), weight, bias, labels)
    grads = run(implementation, "mask_predict", "mask_predict_backward", features.device, *arguments)
    of_features, of_weight, of_bias = grads
    return of_features, of_weight, of_bias


@_mask_predict_backward.register_fake
def _(
    grad_logits: Tensor, features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    if features.ndim == 6:
        grad_features = features.new_empty(features.shape)
    else:
        grad_features = empty_map(features, features.shape, taken_channels_last(features))
    return grad_features, weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _setup_predict(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, weight, bias, labels, ctx.implementation = inputs
    ctx.save_for_backward(output, features, weight, bias, labels)


def _predict_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    probabilities, *saved = ctx.saved_tensors
    grad_logits = grad * probabilities * (1 - probabilities)
    return (*_mask_predict_backward(grad_logits, *saved, ctx.implementation), None, None)


_mask_predict.register_autograd(_predict_backward, setup_context=_setup_predict)


def _setup_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    features, weight, bias, labels, *_, ctx.implementation = inputs
    _, residual, counts = output
    ctx.mark_non_differentiable(residual, counts)
    ctx.set_materialize_grads(False)  # none for the residual, which would be zeros to fill
    ctx.save_for_backward(residual, features, weight, bias, labels)


def _loss_backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 13
    residual, *saved = ctx.saved_tensors
    return (*_mask_predict_backward(grad_loss * residual, *saved, ctx.implementation), *[None] * 10)


_mask_predict_loss.register_autograd(_loss_backward, setup_context=_setup_loss)

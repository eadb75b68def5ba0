"""The last 1x1 convolution of the mask branch for the wanted class only (Mask R-CNN, section 3), and what follows."""

from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import implementation_for, run, values_may_be_read


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
            is asked for, a label that is no class gives NaN.

    Returns:
        Probabilities [K, M, M] in float32 (float64 for float64 features).

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    _check(features, weight, bias, labels)
    labels = _class_of(labels, weight)
    result: Tensor = _mask_predict(_as_stored(features), weight, bias, labels, implementation_for(features))
    return result


def mask_predict_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    boxes: Tensor,
    gt_masks: Tensor,
    gt_index: Tensor,
    weights: Tensor | None = None,
    sampling_ratio: int = -1,
) -> Tensor:
    """`mask_loss` of the logits that `mask_predict` makes probabilities of, with gradients by what they are made of.

    Gradients go to `features`, `weight` and `bias` and are the same bits at each run.

    Args:
        features, weight, bias, labels: see `mask_predict`.
        boxes: [K, 4] as x1, y1, x2, y2 in pixels of `gt_masks`.
        gt_masks: [G, H, W] of 0 and 1, uint8 or bool.
        gt_index: which mask belongs to each RoI [K], int64.
        weights: [K]; 0 leaves a RoI out, whatever else it holds. All 1 if None.
        sampling_ratio: see `roi_align`.

    Returns:
        The mean over RoIs, by weight, and pixels: a scalar in float32 (float64 for float64 features); 0 without any
        weight.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    if weights is None:
        weights = boxes.new_ones(boxes.shape[0], dtype=torch.float32)
    _check(features, weight, bias, labels)
    _check_targets(features, boxes, gt_masks, gt_index, weights)
    labels = torch.where(weights != 0, _class_of(labels, weight), -1)
    targets = (boxes.detach(), gt_masks, gt_index, weights.detach())
    loss, _ = _mask_predict_loss(
        _as_stored(features), weight, bias, labels, *targets, sampling_ratio, implementation_for(features)
    )
    result: Tensor = loss
    return result


def _class_of(labels: Tensor, weight: Tensor) -> Tensor:
    return torch.zeros_like(labels) if weight.shape[0] == 1 else labels


def _as_stored(features: Tensor) -> Tensor:
    """Contiguous, or channels last for what is neither."""
    if features.ndim == 6 or features.is_contiguous():
        return features.contiguous()
    return features.contiguous(memory_format=torch.channels_last)


def _check(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> None:
    shape = features.shape
    square = len(shape) == 4 and shape[2] == shape[3]
    blocked = len(shape) == 6 and shape[1] == shape[2] and shape[3:5] == (2, 2)
    if not (square or blocked) or 0 in shape[1:] or not features.is_floating_point():
        raise ValueError(
            f"features is {tuple(shape)} in {features.dtype}; it must be K x C x M x M or K x M/2 x M/2 x 2 x 2 x C in "
            "floating point, C and M at least 1"
        )
    number, channels = shape[0], shape[1] if square else shape[5]
    if weight.ndim != 2 or weight.shape[1] != channels or weight.shape[0] < 1 or not weight.is_floating_point():
        raise ValueError(
            f"weight is {tuple(weight.shape)} in {weight.dtype}; it must be classes x {channels} in floating point"
        )
    if bias.shape != weight.shape[:1] or not bias.is_floating_point():
        raise ValueError(f"bias is {tuple(bias.shape)} in {bias.dtype}; it must be {weight.shape[0]} in floating point")
    if labels.shape != (number,) or labels.dtype != torch.int64:
        raise ValueError(f"labels is {tuple(labels.shape)} in {labels.dtype}; it must be {number} in int64")
    _check_devices(features, {"weight": weight, "bias": bias, "labels": labels})


def _check_targets(features: Tensor, boxes: Tensor, gt_masks: Tensor, gt_index: Tensor, weights: Tensor) -> None:
    number = features.shape[0]
    if boxes.shape != (number, 4) or not boxes.is_floating_point():
        raise ValueError(f"boxes is {tuple(boxes.shape)} in {boxes.dtype}; it must be {number} x 4 in floating point")
    if not isinstance(gt_masks, Tensor):
        raise ValueError(f"gt_masks is a {type(gt_masks).__name__}; it must be a tensor, G x H x W in uint8 or bool")
    if gt_masks.ndim != 3 or gt_masks.dtype not in (torch.uint8, torch.bool):
        raise ValueError(
            f"gt_masks is {tuple(gt_masks.shape)} in {gt_masks.dtype}; it must be G x H x W in uint8 or bool"
        )
    if gt_index.shape != (number,) or gt_index.dtype != torch.int64:
        raise ValueError(f"gt_index is {tuple(gt_index.shape)} in {gt_index.dtype}; it must be {number} in int64")
    if weights.shape != (number,) or not weights.is_floating_point():
        raise ValueError(f"weights is {tuple(weights.shape)} in {weights.dtype}; it must be {number} in floating point")
    _check_devices(features, {"boxes": boxes, "gt_masks": gt_masks, "gt_index": gt_index, "weights": weights})


def _check_devices(features: Tensor, others: dict[str, Tensor]) -> None:
    for name, value in others.items():
        if value.device != features.device:
            raise ValueError(f"{name} is on {value.device}; it must be on the features' device, {features.device}")


def _check_range(name: str, value: Tensor, used: Tensor, most: int) -> None:
    """Only values tell."""
    outside = used & ((value < 0) | (value >= most))
    if outside.any():
        raise ValueError(f"{name} holds {value[outside][0].item()}; it must be from 0 to {most - 1}")


def _side(features: Tensor) -> int:
    """M, of either form of features."""
    return 2 * features.shape[1] if features.ndim == 6 else features.shape[2]


@torch.library.custom_op("mrcnn::mask_predict", mutates_args=())
def _mask_predict(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, implementation: str) -> Tensor:
    if values_may_be_read(labels):
        _check_range("labels", labels, torch.ones_like(labels, dtype=torch.bool), weight.shape[0])
    arguments = (features, weight, bias, labels)
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
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """The loss and its derivative by each RoI's logits [K, M, M]."""
    if values_may_be_read(labels):
        _check_range("labels", labels, weights != 0, weight.shape[0])
        _check_range("gt_index", gt_index, weights != 0, gt_masks.shape[0])
    arguments = (features, weight, bias, labels, boxes, gt_masks, gt_index, weights, sampling_ratio)
    loss, residual = run(implementation, "mask_predict", "mask_predict_loss", features.device, *arguments)
    return loss, residual


@_mask_predict_loss.register_fake
def _(features: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    side = _side(features)
    dtype = torch.promote_types(features.dtype, torch.float32)
    return features.new_empty((), dtype=dtype), features.new_empty((features.shape[0], side, side), dtype=dtype)


@torch.library.custom_op("mrcnn::mask_predict_backward", mutates_args=())
def _mask_predict_backward(
    grad_logits: Tensor, features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of features, weight and bias; a RoI whose label is no class has none and adds none."""
    arguments = (grad_logits, features, weight, bias, labels)
    grads = run(implementation, "mask_predict", "mask_predict_backward", features.device, *arguments)
    of_features, of_weight, of_bias = grads
    return of_features, of_weight, of_bias


@_mask_predict_backward.register_fake
def _(
    grad_logits: Tensor, features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    # Features are in one of the forms of `_as_stored`, whose strides a gradient keeps.
    return torch.empty_like(features), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _setup_predict(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, weight, bias, labels, ctx.implementation = inputs
    ctx.save_for_backward(output, features, weight, bias, labels)


def _predict_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    probabilities, *saved = ctx.saved_tensors
    grad_logits = grad * probabilities * (1 - probabilities)
    return (*_mask_predict_backward(grad_logits, *saved, ctx.implementation), None, None)


_mask_predict.register_autograd(_predict_backward, setup_context=_setup_predict)


def _setup_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, weight, bias, labels, *_, ctx.implementation = inputs
    _, residual = output
    ctx.mark_non_differentiable(residual)
    ctx.set_materialize_grads(False)  # none for the residual, which would be zeros to fill
    ctx.save_for_backward(residual, features, weight, bias, labels)


def _loss_backward(ctx: Any, grad_loss: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 10
    residual, *saved = ctx.saved_tensors
    return (*_mask_predict_backward(grad_loss * residual, *saved, ctx.implementation), *[None] * 7)


_mask_predict_loss.register_autograd(_loss_backward, setup_context=_setup_loss)

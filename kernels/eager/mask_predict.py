"""The last 1x1 convolution of the mask branch for one class a RoI: matrix times vector, a RoI at a time.

Half precision is widened in a buffer that stays in the cache, so that sums are in float32 and nothing of the features'
size is allocated. The gradient by features is an outer product; as a matrix product of depth 1 it would be several
times slower.
"""

import torch
from torch import Tensor

from kernels.eager.mask_loss import mask_loss


def mask_predict(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """See `kernels.mask_predict`."""
    return _logits(features, weight, bias, labels).sigmoid_()


def mask_predict_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    boxes: Tensor,
    gt_masks: Tensor,
    gt_index: Tensor,
    weights: Tensor,
    sampling_ratio: int,
) -> tuple[Tensor, Tensor]:
    """See `kernels.mask_predict_loss`. The loss and its derivative by each RoI's logits [K, M, M]."""
    logits = _logits(features, weight, bias, labels)[:, None]
    return mask_loss(logits, labels, boxes, gt_masks, gt_index, weights, sampling_ratio)


def mask_predict_backward(
    grad_logits: Tensor, features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of features, weight and bias; a RoI whose label is no class has none and adds none."""
    compute, classes = grad_logits.dtype, weight.shape[0]
    grad_features = torch.empty_like(features)
    cells, grad_cells = _cells(features), _cells(grad_features)
    grads = _in_order_of_cells(grad_logits.contiguous(), features)
    wide_weight = weight.to(compute)
    grad_weight, grad_bias = (torch.zeros_like(each, dtype=compute) for each in (weight, bias))
    buffer = cells.new_empty(cells.shape[1:], dtype=compute)
    for k, label in enumerate(labels.tolist()):
        if not 0 <= label < classes:
            grad_cells[k] = 0
            continue
        grad_weight[label] += torch.mv(buffer.copy_(cells[k]).t(), grads[k])
        grad_bias[label] += grads[k].sum()
        grad_cells[k] = torch.mul(grads[k][:, None], wide_weight[label], out=buffer)
    return grad_features, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


def _logits(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Logits of each RoI's class [K, M, M]; NaN for a label that is no class."""
    compute = torch.promote_types(features.dtype, torch.float32)
    cells, wide_weight, wide_bias = _cells(features), weight.to(compute), bias.to(compute)
    logits = cells.new_empty(cells.shape[:2], dtype=compute)
    buffer = cells.new_empty(cells.shape[1:], dtype=compute)
    for k, label in enumerate(labels.tolist()):
        if 0 <= label < weight.shape[0]:
            wide = cells[k] if cells.dtype == compute else buffer.copy_(cells[k])
            torch.addmv(wide_bias[label], wide, wide_weight[label], out=logits[k])
        else:
            logits[k] = float("nan")
    return _in_order_of_pixels(logits, features)


def _cells(features: Tensor) -> Tensor:
    """Features as [K, M M, C], a view, with the cells of a RoI in the order of memory."""
    if features.ndim == 6:
        return features.flatten(1, 4)
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def _in_order_of_cells(pixels: Tensor, features: Tensor) -> Tensor:
    """[K, M, M] as [K, M M], each pixel at the place of its cell."""
    if features.ndim == 4:
        return pixels.flatten(1)
    number, half = features.shape[:2]
    return pixels.view(number, half, 2, half, 2).transpose(2, 3).flatten(1)


def _in_order_of_pixels(cells: Tensor, features: Tensor) -> Tensor:
    """The inverse of `_in_order_of_cells`."""
    if features.ndim == 4:
        return cells.view(-1, features.shape[2], features.shape[3])
    number, half = features.shape[:2]
    return cells.view(number, half, half, 2, 2).transpose(2, 3).reshape(number, 2 * half, 2 * half)

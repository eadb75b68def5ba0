"""The last 1x1 convolution of the mask branch for one class a RoI: a batch of products of matrix and vector.

A few RoIs are taken at a time, so that half precision, widened for sums in float32, stays in the cache and nothing of
all features' size is allocated. The gradient by features is an outer product; as a matrix product of depth 1 it would
be several times slower.
"""

import torch
from torch import Tensor

_ROIS = 8  # at a time: 6 MB of float32 in the paper's model
_CELLS = 64  # that a matrix product sums at once: rounding grows with the length of a sum


def mask_predict(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """See `kernels.mask_predict`."""
    return class_logits(features, weight, bias, labels).sigmoid_()


def mask_predict_backward(
    grad_logits: Tensor, features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of features, weight and bias; a RoI whose label is no class has none and adds none."""
    compute = grad_logits.dtype
    known, label = _known(labels, weight)
    grads = torch.where(known[:, None], _in_order_of_cells(grad_logits.contiguous(), features), 0.0)
    own_weight = torch.where(known[:, None], weight.to(compute)[label], 0.0)
    grad_features = torch.empty_like(features)
    cells, grad_cells = _cells(features), _cells(grad_features)
    share = grads.new_empty((len(labels), weight.shape[1]))
    for some in _few(len(labels)):
        values = cells[some].to(compute)
        torch.bmm(grads[some, None, :_CELLS], values[:, :_CELLS], out=share[some, None])
        for first in range(_CELLS, values.shape[1], _CELLS):
            part = slice(first, first + _CELLS)
            share[some] += torch.bmm(grads[some, None, part], values[:, part])[:, 0]
        outer = grad_cells[some] if features.dtype == compute else cells.new_empty(cells[some].shape, dtype=compute)
        torch.mul(grads[some, :, None], own_weight[some, None], out=outer)
        if features.dtype != compute:
            grad_cells[some] = outer
    # What a RoI without a class holds may be no number, and 0 times that is none either.
    grad_weight = torch.zeros_like(weight, dtype=compute).index_add_(0, label, torch.where(known[:, None], share, 0.0))
    grad_bias = torch.zeros_like(bias, dtype=compute).index_add_(0, label, grads.sum(dim=1))
    return grad_features, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


def class_logits(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Logits of each RoI's class [K, M, M]; -inf, and so a probability of 0, for a label that is no class."""
    compute = torch.promote_types(features.dtype, torch.float32)
    known, label = _known(labels, weight)
    own_weight, own_bias = weight.to(compute)[label, :, None], bias.to(compute)[label, None, None]
    cells = _cells(features)
    logits = cells.new_empty((*cells.shape[:2], 1), dtype=compute)
    for some in _few(len(labels)):
        torch.baddbmm(own_bias[some], cells[some].to(compute), own_weight[some], out=logits[some])
    return _in_order_of_pixels(torch.where(known[:, None], logits[..., 0], float("-inf")), features)


def _known(labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Which labels are a class, and the labels with 0 in place of those that are none."""
    known = (labels >= 0) & (labels < weight.shape[0])
    return known, torch.where(known, labels, 0)


def _few(number: int) -> list[slice]:
    return [slice(first, min(first + _ROIS, number)) for first in range(0, number, _ROIS)]


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

"""The last 1x1 convolution of the mask branch, RoI by RoI, for its class."""

import torch
from torch import Tensor


def mask_predict(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """See `kernels.mask_predict`."""
    return torch.sigmoid(class_logits(features, weight, bias, labels))


def mask_predict_backward(
    grad_logits: Tensor, features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of features, weight and bias; a RoI whose label is no class has none and adds none."""
    compute = grad_logits.dtype
    pixels = _pixels(features).to(compute)
    grad_pixels = torch.zeros_like(pixels)
    grad_weight, grad_bias = (torch.zeros_like(each, dtype=compute) for each in (weight, bias))
    for k, label in enumerate(labels.tolist()):
        if 0 <= label < weight.shape[0]:
            grad_pixels[k] = weight[label].to(compute)[:, None, None] * grad_logits[k]
            grad_weight[label] += (pixels[k] * grad_logits[k]).sum(dim=(1, 2))
            grad_bias[label] += grad_logits[k].sum()
    grad_features = torch.empty_like(features)
    _pixels(grad_features, grad_pixels)
    return grad_features, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


def class_logits(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Logits of each RoI's class [K, M, M]; -inf, and so a probability of 0, for a label that is no class."""
    compute = torch.promote_types(features.dtype, torch.float32)
    pixels = _pixels(features).to(compute)
    logits = pixels.new_full((pixels.shape[0], *pixels.shape[2:]), float("-inf"))
    for k, label in enumerate(labels.tolist()):
        if 0 <= label < weight.shape[0]:
            logits[k] = (weight[label].to(compute)[:, None, None] * pixels[k]).sum(dim=0) + bias[label].to(compute)
    return logits


def _pixels(features: Tensor, values: Tensor | None = None) -> Tensor:
    """Features as [K, C, M, M], a copy where they come in blocks; with `values` of that shape, they are set first."""
    if features.ndim == 4:
        return features if values is None else features.copy_(values)
    number, height, width, _, _, channels = features.shape
    in_blocks = features.permute(0, 5, 1, 3, 2, 4)  # [K, C, row, row in block, column, column in block]
    if values is not None:
        in_blocks.copy_(values.view(in_blocks.shape))
    return in_blocks.reshape(number, channels, 2 * height, 2 * width)

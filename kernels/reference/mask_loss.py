"""The mask loss of Mask R-CNN, section 3: binary cross-entropy on the ground truth's class, averaged over RoIs."""

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from kernels.masks import PackedMasks, unpack_masks
from kernels.reference.roi_align import roi_align


def mask_loss(
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor,
    gt_masks: Tensor,
    gt_index: Tensor,
    weights: Tensor,
    sampling_ratio: int,
    width: int | None = None,
    extents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `kernels.mask_loss`. The loss and its derivative with respect to each RoI's class channel [K, M, M].

    `gt_masks` may be words of bits, see `PackedMasks`, of masks `width` wide; `extents` say nothing new here, where
    masks are written to their end.
    """
    loss, derivative, _ = mask_loss_with_counts(
        logits, labels, boxes, gt_masks, gt_index, weights, sampling_ratio, width, extents
    )
    return loss, derivative


def mask_loss_with_counts(
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor,
    gt_masks: Tensor,
    gt_index: Tensor,
    weights: Tensor,
    sampling_ratio: int,
    width: int | None = None,
    extents: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and `MaskCounts` as a vector [4] int64."""
    if width is not None:
        gt_masks = unpack_masks(PackedMasks(gt_masks, width))
    compute = torch.promote_types(logits.dtype, torch.float32)
    size = logits.shape[-1]
    losses = logits.new_zeros((logits.shape[0], size, size), dtype=compute)
    derivative = logits.new_zeros((logits.shape[0], size, size), dtype=compute)
    counts = logits.new_zeros(4, dtype=torch.int64)
    normaliser = size * size * weights.to(compute).sum()
    for k in torch.nonzero(weights).flatten().tolist():
        roi = torch.cat([boxes.new_zeros(1), boxes[k]]).to(compute)[None]
        mask = gt_masks[gt_index[k]].to(compute)[None, None]
        target = roi_align([mask], roi, [1.0], (size, size), sampling_ratio, False, 224.0, 4)[0, 0]
        chosen = logits[k, 0 if logits.shape[1] == 1 else int(labels[k])].to(compute)
        losses[k] = weights[k] * binary_cross_entropy_with_logits(chosen, target, reduction="none") / normaliser
        derivative[k] = weights[k] * (torch.sigmoid(chosen) - target) / normaliser
        positive, predicted = target >= 0.5, chosen > 0
        false_positives, false_negatives = (predicted & ~positive).sum(), (positive & ~predicted).sum()
        counts += torch.stack([counts.new_tensor(size * size), positive.sum(), false_positives, false_negatives])
    if compute == torch.float64:  # what others are compared with has no rounding of its own in the sum
        return losses.new_tensor(math.fsum(losses.flatten().tolist())), derivative, counts
    return losses.sum(), derivative, counts


def mask_loss_backward(
    grad_loss: Tensor,
    residual: Tensor,
    labels: Tensor,
    num_channels: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """The gradient of the logits [K, C, M, M]: zero but in each RoI's class channel."""
    grad = residual.new_zeros((residual.shape[0], num_channels, *residual.shape[1:]))
    for k in range(residual.shape[0]):
        if residual[k].any():  # the label of a RoI without weight may be anything
            grad[k, 0 if num_channels == 1 else int(labels[k])] = grad_loss * residual[k]
    return grad.to(dtype).contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

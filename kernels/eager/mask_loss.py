"""The mask loss without a float copy of the masks: only the pixels under each box are read.

RoIAlign of one mask is two small matrix products, Ry (M x h) . mask (h x w) . Rx (w x M), with the weights of the box
along each axis.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from kernels.eager.roi_align import axis_taps, tap_form
from kernels.masks import WORD, unpacked_words


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
    compute = torch.promote_types(logits.dtype, torch.float32)
    size = logits.shape[-1]
    derivative = logits.new_zeros((logits.shape[0], size, size), dtype=compute)
    known = (gt_index >= 0) & (gt_index < gt_masks.shape[0])  # on a GPU nobody has looked
    if logits.shape[1] > 1:
        known &= (labels >= 0) & (labels < logits.shape[1])
    used = torch.nonzero((weights != 0) & known)[:, 0]
    if used.numel() == 0:
        return logits.new_zeros((), dtype=compute), derivative, logits.new_zeros(4, dtype=torch.int64)
    width = gt_masks.shape[2] if width is None else width
    targets = _crop(gt_masks, width, gt_index[used], boxes[used].to(compute), size, sampling_ratio)
    channel = labels[used] if logits.shape[1] > 1 else torch.zeros_like(labels[used])
    chosen = logits[used, channel].to(compute)
    share = (weights[used].to(compute) / (weights.to(compute).sum() * size * size))[:, None, None]
    loss = (share * binary_cross_entropy_with_logits(chosen, targets, reduction="none")).sum()
    derivative[used] = share * (torch.sigmoid(chosen) - targets)
    positive, predicted = targets >= 0.5, chosen > 0
    wrong = positive != predicted
    counts = [torch.ones_like(wrong), positive, wrong & predicted, wrong & positive]
    return loss, derivative, torch.stack([each.sum() for each in counts])


def mask_loss_backward(
    grad_loss: Tensor,
    residual: Tensor,
    labels: Tensor,
    num_channels: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """The gradient of the logits [K, C, M, M]: zero but in each RoI's class channel."""
    number, size = residual.shape[:2]
    channel_grad = (grad_loss * residual).to(dtype)[:, None]
    if num_channels == 1:
        return channel_grad
    if channels_last:
        grad = channel_grad.new_zeros((number, size, size, num_channels)).permute(0, 3, 1, 2)
    else:
        grad = channel_grad.new_zeros((number, num_channels, size, size))
    # The label of a RoI without weight may be anything, and its gradient is zero wherever it goes.
    channel = labels.clamp(0, num_channels - 1).view(-1, 1, 1, 1).expand(-1, 1, size, size)
    return grad.scatter_(1, channel, channel_grad)


def _crop(masks: Tensor, width: int, index: Tensor, boxes: Tensor, size: int, sampling_ratio: int) -> Tensor:
    """RoIAlign of masks[index] [k, H, width] under each box [k, 4], one channel and one box each: [k, size, size]."""
    crops = boxes.new_zeros((boxes.shape[0], size, size))
    finite = torch.isfinite(boxes[:, 2:] - boxes[:, :2]).all(dim=1)
    x1, y1, x2, y2 = torch.where(finite[:, None], boxes, 0.0).unbind(1)
    rows = _axis_weights(y1, (y2 - y1).clamp(min=1.0), size, sampling_ratio, masks.shape[1])
    columns = _axis_weights(x1, (x2 - x1).clamp(min=1.0), size, sampling_ratio, width)
    for k, (image, use) in enumerate(zip(index.tolist(), finite.tolist(), strict=True)):
        if use:
            (top, wy), (left, wx) = rows[k], columns[k]
            window = _window(masks[image, top : top + wy.shape[1]], left, left + wx.shape[1])
            torch.mm(torch.mm(wy, window.to(boxes.dtype)), wx.t(), out=crops[k])
    return crops


def _window(rows: Tensor, left: int, right: int) -> Tensor:
    """Pixels from `left` up to `right` of rows of pixels, or of words of bits."""
    if rows.dtype != torch.int32:
        return rows[:, left:right]
    first = left // WORD
    return unpacked_words(rows[:, first : -(-right // WORD)])[:, left - first * WORD : right - first * WORD]


def _axis_weights(start: Tensor, length: Tensor, bins: int, sampling_ratio: int, size: int) -> list[tuple[int, Tensor]]:
    """For each box the first pixel that it reaches along an axis and the weights [bins, pixels] from there on."""
    result: list[tuple[int, Tensor]] = [(0, start.new_zeros((bins, 0)))] * start.shape[0]
    forms, form_of = torch.unique(tap_form(length / bins, sampling_ratio), return_inverse=True)
    for number, form in enumerate(forms.tolist()):
        samples, shared = divmod(form, 2)
        group = torch.nonzero(form_of == number)[:, 0]
        at, weights = axis_taps(start[group], length[group], bins, samples, bool(shared), size)
        first, last = at.amin(dim=(1, 2)), at.amax(dim=(1, 2))
        dense = weights.new_zeros((len(group), bins, int((last - first).max()) + 1))
        dense.scatter_add_(2, at - first[:, None, None], weights)
        for k, low, high, matrix in zip(group.tolist(), first.tolist(), last.tolist(), dense, strict=True):
            result[k] = (low, matrix[:, : high - low + 1])
    return result

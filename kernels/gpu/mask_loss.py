"""The mask branch's loss with its gradient in one pass over the class channels (Mask R-CNN, section 3).

Targets are sampled from the ground truth masks inside the kernel, as RoIAlign of the mask would, and stay
soft. With logit x and target t, binary cross entropy is max(x, 0) - x t + log(1 + exp(-|x|)) and its
derivative sigmoid(x) - t. One program takes a RoI, and the sum over RoIs is taken in a fixed order
afterwards: the same bits at each run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import divide, finite, log1p, sample, sample_range, sampling_grid, share_of_sample


def prune_block(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Blocks that are not twice as long as what they cover; the shortest if all are."""
    longest = triton.next_power_of_2(arguments["SIZE"] ** 2 * arguments.get("CHANNELS_WRITTEN", 1))
    fitting = [config for config in configs if config.kwargs["BLOCK"] <= longest]
    return fitting or [min(configs, key=lambda config: config.kwargs["BLOCK"])]


@tuning.tuned(
    configs=[
        triton.Config({"BLOCK": block}, num_warps=warps)
        for block, warps in [(256, 4), (128, 4), (128, 2), (512, 4), (512, 8), (1024, 8)]
    ],
    key=["SIZE", "RATIO", "rois_bucket"],
    prune=prune_block,
)
@triton.jit(do_not_specialize=["height", "width", "num_masks", "rois_bucket"])
def _loss_kernel(
    logits_ptr,  # [K, C, SIZE, SIZE] with the strides below
    labels_ptr,  # [K]
    boxes_ptr,  # [K, 4]
    masks_ptr,  # [G, H, W] uint8
    gt_index_ptr,  # [K]
    weights_ptr,  # [K]
    weight_sum_ptr,  # [] sum of the weights
    loss_ptr,  # [K] what each RoI adds to the loss
    residual_ptr,  # [K, SIZE, SIZE] derivative of the loss by the logits of the RoI's class
    height,
    width,
    num_masks,
    rois_bucket,
    stride_k,
    stride_c,
    stride_h,
    stride_w,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    RATIO: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program: RoI."""
    roi = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = loss_ptr.dtype.element_ty
    weight = tl.load(weights_ptr + roi).to(dtype)
    mask_index = tl.load(gt_index_ptr + roi).to(tl.int64)
    label = tl.load(labels_ptr + roi).to(tl.int64)
    if CHANNELS == 1:
        label = tl.zeros_like(label)
    used = (weight != 0) & (mask_index >= 0) & (mask_index < num_masks) & (label >= 0) & (label < CHANNELS)
    residual = residual_ptr + roi * (SIZE * SIZE)
    if used:
        x1 = tl.load(boxes_ptr + roi * 4).to(dtype)
        y1 = tl.load(boxes_ptr + roi * 4 + 1).to(dtype)
        x2 = tl.load(boxes_ptr + roi * 4 + 2).to(dtype)
        y2 = tl.load(boxes_ptr + roi * 4 + 3).to(dtype)
        usable = finite(x1) & finite(y1) & finite(x2) & finite(y2) & finite(x2 - x1) & finite(y2 - y1)
        # A box that cannot be sampled goes where no sample counts.
        x1, x2 = tl.where(usable, x1, -1e9), tl.where(usable, x2, -1e9)
        y1, y2 = tl.where(usable, y1, -1e9), tl.where(usable, y2, -1e9)
        x_grid = sampling_grid(x1, x2, 1.0, width.to(dtype), SIZE, RATIO, False)
        y_grid = sampling_grid(y1, y2, 1.0, height.to(dtype), SIZE, RATIO, False)
        share = share_of_sample(y_grid, x_grid)
        scale = divide(weight, tl.load(weight_sum_ptr).to(dtype) * (SIZE * SIZE))
        masks = masks_ptr + mask_index * height * width
        logits = logits_ptr + roi * stride_k + label * stride_c
        total = tl.zeros((BLOCK,), dtype)
        for first in range(0, SIZE * SIZE, BLOCK):
            cell = first + tl.arange(0, BLOCK)
            inside = cell < SIZE * SIZE
            cell_y, cell_x = cell // SIZE, cell % SIZE
            logit = tl.load(logits + cell_y * stride_h + cell_x * stride_w, mask=inside, other=0.0).to(dtype)
            target = share * _sum_of_samples(masks, width, cell_y, cell_x, inside, y_grid, x_grid, RATIO)
            small = tl.exp(-tl.abs(logit))
            total += tl.where(inside, tl.maximum(logit, 0.0) - logit * target + log1p(small), 0.0)
            probability = tl.where(logit >= 0, 1.0, small) / (1.0 + small)
            tl.store(residual + cell, (probability - target) * scale, mask=inside)
        tl.store(loss_ptr + roi, tl.sum(total, 0) * scale)
    else:
        for first in range(0, SIZE * SIZE, BLOCK):
            cell = first + tl.arange(0, BLOCK)
            tl.store(residual + cell, tl.zeros((BLOCK,), dtype), mask=cell < SIZE * SIZE)
        tl.store(loss_ptr + roi, tl.zeros_like(weight))


@triton.jit
def _sum_of_samples(masks, width, cell_y, cell_x, inside, y_grid, x_grid, RATIO: tl.constexpr):
    """Sum of the bilinear samples of one mask in each cell."""
    dtype: tl.constexpr = y_grid[0].dtype
    y_first, y_stop = sample_range(y_grid, cell_y, RATIO)
    x_first, x_stop = sample_range(x_grid, cell_x, RATIO)
    total = tl.zeros_like(y_grid[0] + cell_y)
    for y_offset in range(tl.max(tl.where(inside, y_stop - y_first, 0), 0)):
        y, y_counts = sample(y_grid, cell_y, y_first + y_offset)
        y_counts = y_counts & inside & (y_first + y_offset < y_stop)
        top = y.to(tl.int32)
        y_fraction = y - top
        upper = masks + top.to(tl.int64) * width
        for x_offset in range(tl.max(tl.where(inside, x_stop - x_first, 0), 0)):
            x, counts = sample(x_grid, cell_x, x_first + x_offset)
            counts = counts & y_counts & (x_first + x_offset < x_stop)
            left = x.to(tl.int32)
            x_fraction = x - left
            # A pixel beyond the border has weight 0 and is not read.
            right, below = counts & (x_fraction > 0), y_fraction > 0
            v00 = tl.load(upper + left, mask=counts, other=0).to(dtype)
            v01 = tl.load(upper + left + 1, mask=right, other=0).to(dtype)
            v10 = tl.load(upper + width + left, mask=counts & below, other=0).to(dtype)
            v11 = tl.load(upper + width + left + 1, mask=right & below, other=0).to(dtype)
            total += (1.0 - y_fraction) * ((1.0 - x_fraction) * v00 + x_fraction * v01)
            total += y_fraction * ((1.0 - x_fraction) * v10 + x_fraction * v11)
    return total


@tuning.tuned(
    configs=[
        triton.Config({"BLOCK": block}, num_warps=warps)
        for block, warps in [(1024, 4), (512, 4), (2048, 4), (2048, 8), (4096, 8)]
    ],
    key=["CHANNELS", "SIZE", "CHANNELS_LAST", "rois_bucket"],
    prune=prune_block,
)
@triton.jit(do_not_specialize=["rois_bucket"])
def _gradient_kernel(
    grad_loss_ptr,  # []
    residual_ptr,  # [K, SIZE, SIZE]
    labels_ptr,  # [K]
    grad_ptr,  # [K, C, SIZE, SIZE], contiguous or channels last: the result
    rois_bucket,
    CHANNELS: tl.constexpr,
    CHANNELS_WRITTEN: tl.constexpr,
    SIZE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (RoI, block of its gradient) writes zeros and the channel of the RoI's class in one pass."""
    roi = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + roi)
    if CHANNELS == 1:
        label = tl.zeros_like(label)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < CHANNELS * SIZE * SIZE
    if CHANNELS_LAST:
        channel, cell = place % CHANNELS, place // CHANNELS
    else:
        channel, cell = place // (SIZE * SIZE), place % (SIZE * SIZE)
    residual = tl.load(residual_ptr + roi * (SIZE * SIZE) + cell, mask=inside & (channel == label), other=0.0)
    grad = residual * tl.load(grad_loss_ptr).to(residual.dtype)
    grad = tl.where(channel == label, grad, 0.0)
    tl.store(grad_ptr + roi * (CHANNELS * SIZE * SIZE) + place, grad.to(grad_ptr.dtype.element_ty), mask=inside)


def mask_loss(
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor,
    gt_masks: Tensor,
    gt_index: Tensor,
    weights: Tensor,
    sampling_ratio: int,
) -> tuple[Tensor, Tensor]:
    """See `kernels.mask_loss`. The loss and its derivative by the logits of each RoI's class, [K, M, M]."""
    num_rois, channels, size, _ = logits.shape
    compute = torch.promote_types(logits.dtype, torch.float32)
    residual = logits.new_empty((num_rois, size, size), dtype=compute)
    if num_rois == 0:
        return logits.new_zeros((), dtype=compute), residual
    losses = logits.new_empty(num_rois, dtype=compute)
    masks = gt_masks.contiguous()
    with tuning.on_device_of(logits):
        tuning.launch(
            _loss_kernel,
            (num_rois,),
            (
                logits,
                labels.contiguous(),
                boxes.contiguous(),
                masks.view(torch.uint8),
                gt_index.contiguous(),
                weights.contiguous(),
                weights.sum(dtype=compute),
                losses,
                residual,
            ),
            height=masks.shape[1],
            width=masks.shape[2],
            num_masks=masks.shape[0],
            rois_bucket=tuning.bucket(num_rois),
            stride_k=logits.stride(0),
            stride_c=logits.stride(1),
            stride_h=logits.stride(2),
            stride_w=logits.stride(3),
            CHANNELS=channels,
            SIZE=size,
            RATIO=max(sampling_ratio, 0),
        )
    return losses.sum(), residual


def mask_loss_backward(
    grad_loss: Tensor,
    residual: Tensor,
    labels: Tensor,
    num_channels: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """The dense gradient [K, num_channels, M, M] of the logits: zero but for each RoI's class."""
    num_rois, size, _ = residual.shape
    if channels_last:
        grad = residual.new_empty((num_rois, size, size, num_channels), dtype=dtype).permute(0, 3, 1, 2)
    else:
        grad = residual.new_empty((num_rois, num_channels, size, size), dtype=dtype)
    if num_rois == 0:
        return grad
    with tuning.on_device_of(residual):
        tuning.launch(
            _gradient_kernel,
            lambda meta: (num_rois, triton.cdiv(num_channels * size * size, meta["BLOCK"])),
            (grad_loss, residual.contiguous(), labels.contiguous(), grad),
            rois_bucket=tuning.bucket(num_rois),
            CHANNELS=num_channels,
            CHANNELS_WRITTEN=num_channels,
            SIZE=size,
            CHANNELS_LAST=channels_last,
        )
    return grad

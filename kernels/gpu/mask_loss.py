"""The mask branch's loss with its gradient in one pass over the class channels (Mask R-CNN, section 3).

Targets are sampled from the ground truth masks inside the kernel, as RoIAlign of the mask would, and stay
soft. With logit x and target t, binary cross entropy is max(x, 0) - x t + log(1 + exp(-|x|)) and its
derivative sigmoid(x) - t. One program takes a few rows of cells of a RoI, each with a sum of its own, and these are
summed in a fixed order afterwards: the same bits at each run and in every configuration.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import divide, finite, log1p, sampling_grid
from kernels.gpu.mask_sampling import mean_of_samples
from kernels.memory_format import empty_map


def prune_cell_rows(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Programs that have no more rows of cells than there are; those with the fewest if all have."""
    fitting = [config for config in configs if config.kwargs["CELL_ROWS"] <= arguments["SIZE"]]
    return fitting or [min(configs, key=lambda config: config.kwargs["CELL_ROWS"])]


def prune_block(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Blocks that are not twice as long as what they cover; the shortest if all are."""
    longest = triton.next_power_of_2(arguments["SIZE"] ** 2 * arguments["CHANNELS_WRITTEN"])
    fitting = [config for config in configs if config.kwargs["BLOCK"] <= longest]
    return fitting or [min(configs, key=lambda config: config.kwargs["BLOCK"])]


@tuning.tuned(
    configs=[triton.Config({"CELL_ROWS": rows}, num_warps=1) for rows in (2, 1, 4, 8)],
    key=["SIZE", "RATIO", "BOUNDED", "COUNTED", "rois_bucket", "image_bucket"],
    prune=prune_cell_rows,
)
@triton.jit(do_not_specialize=["height", "width", "row_stride", "num_masks", "rois_bucket", "image_bucket"])
def _loss_kernel(
    logits_ptr,  # [K, C, SIZE, SIZE] with the strides below
    labels_ptr,  # [K]
    boxes_ptr,  # [K, 4]
    masks_ptr,  # [G, H, W] uint8, or [G, H, words] int32
    extents_ptr,  # [G, 4] if BOUNDED: left, top, and past right and bottom; outside nothing is read and all is 0
    gt_index_ptr,  # [K]
    weights_ptr,  # [K]
    weight_sum_ptr,  # [] sum of the weights
    loss_ptr,  # [K, SIZE, PARTS] what each part of each row of each RoI adds to the loss
    residual_ptr,  # [K, SIZE, SIZE] derivative of the loss by the logits of the RoI's class
    counts_ptr,  # [K, SIZE, PARTS, 4] int32 if COUNTED: cells, positives, false positives and negatives of each
    height,
    width,
    row_stride,
    num_masks,
    rois_bucket,
    image_bucket,
    stride_k,
    stride_c,
    stride_h,
    stride_w,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    CELLS: tl.constexpr,
    PARTS: tl.constexpr,
    RATIO: tl.constexpr,
    BOUNDED: tl.constexpr,
    COUNTED: tl.constexpr,
    CELL_ROWS: tl.constexpr,
):
    """Program: (RoI, CELL_ROWS rows of its cells, or parts of CELLS cells of these if they are longer)."""
    roi = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = loss_ptr.dtype.element_ty
    weight = tl.load(weights_ptr + roi).to(dtype)
    mask_index = tl.load(gt_index_ptr + roi).to(tl.int64)
    label = tl.load(labels_ptr + roi).to(tl.int64)
    if CHANNELS == 1:
        label = tl.zeros_like(label)
    used = (weight != 0) & (mask_index >= 0) & (mask_index < num_masks) & (label >= 0) & (label < CHANNELS)
    first = tl.program_id(1) * CELL_ROWS
    last = tl.minimum(first + CELL_ROWS, SIZE * PARTS)
    loss_ptr += roi * (SIZE * PARTS)
    if COUNTED:
        counts_ptr += roi * (SIZE * PARTS * 4)
    residual_ptr += roi * (SIZE * SIZE)
    if used:
        y_grid, x_grid = _grids(boxes_ptr + roi * 4, height, width, SIZE, RATIO, dtype)
        scale = divide(weight, tl.load(weight_sum_ptr).to(dtype) * (SIZE * SIZE))
        left, top, right, bottom = 0, 0, width, height
        if BOUNDED:
            extent = extents_ptr + mask_index * 4
            left, top = tl.load(extent), tl.load(extent + 1)
            right, bottom = tl.load(extent + 2), tl.load(extent + 3)
        masks = masks_ptr + mask_index * height * row_stride, row_stride, left, top, right, bottom
        logits = logits_ptr + roi * stride_k + label * stride_c
        for part in range(first, last):
            cell_y, cell_x = part // PARTS, part % PARTS * CELLS + tl.arange(0, CELLS)
            inside = cell_x < SIZE
            logit = tl.load(logits + cell_y * stride_h + cell_x * stride_w, mask=inside, other=0.0).to(dtype)
            target = mean_of_samples(masks, y_grid, x_grid, cell_y, cell_x, inside, RATIO, BOUNDED)
            small = tl.exp(-tl.abs(logit))
            entropy = tl.where(inside, tl.fma(-logit, target, tl.maximum(logit, 0.0)) + log1p(small), 0.0)
            probability = divide(tl.where(logit >= 0, 1.0, small), 1.0 + small)
            tl.store(residual_ptr + cell_y * SIZE + cell_x, (probability - target) * scale, mask=inside)
            tl.store(loss_ptr + part, tl.sum(entropy, 0) * scale)
            if COUNTED:
                positive, predicted = inside & (target >= 0.5), inside & (logit > 0)
                tl.store(counts_ptr + part * 4, tl.minimum(SIZE - part % PARTS * CELLS, CELLS))
                tl.store(counts_ptr + part * 4 + 1, tl.sum(positive.to(tl.int32), 0))
                tl.store(counts_ptr + part * 4 + 2, tl.sum((predicted & (target < 0.5)).to(tl.int32), 0))
                tl.store(counts_ptr + part * 4 + 3, tl.sum((positive & (logit <= 0)).to(tl.int32), 0))
    else:
        for part in range(first, last):
            cell_y, cell_x = part // PARTS, part % PARTS * CELLS + tl.arange(0, CELLS)
            tl.store(residual_ptr + cell_y * SIZE + cell_x, tl.zeros((CELLS,), dtype), mask=cell_x < SIZE)
            tl.store(loss_ptr + part, tl.zeros_like(weight))
            if COUNTED:
                tl.store(counts_ptr + part * 4 + tl.arange(0, 4), tl.zeros((4,), tl.int32))


@triton.jit
def _grids(box_ptr, height, width, SIZE: tl.constexpr, RATIO: tl.constexpr, dtype: tl.constexpr):
    """Sampling grids along y and x of a box; one that cannot be sampled goes where no sample counts."""
    x1, y1 = tl.load(box_ptr).to(dtype), tl.load(box_ptr + 1).to(dtype)
    x2, y2 = tl.load(box_ptr + 2).to(dtype), tl.load(box_ptr + 3).to(dtype)
    usable = finite(x1) & finite(y1) & finite(x2) & finite(y2) & finite(x2 - x1) & finite(y2 - y1)
    x1, x2 = tl.where(usable, x1, -1e9), tl.where(usable, x2, -1e9)
    y1, y2 = tl.where(usable, y1, -1e9), tl.where(usable, y2, -1e9)
    y_grid = sampling_grid(y1, y2, 1.0, height.to(dtype), SIZE, RATIO, False)
    x_grid = sampling_grid(x1, x2, 1.0, width.to(dtype), SIZE, RATIO, False)
    return y_grid, x_grid


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
    width: int | None = None,
    extents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `kernels.mask_loss`. The loss and its derivative by the logits of each RoI's class, [K, M, M].

    Args:
        gt_masks: [G, H, W] uint8 or bool; or words of bits, see `PackedMasks`, of masks `width` wide.
        extents: see `kernels.rasterize.rasterized`; outside of them the masks are 0, whatever they hold.
    """
    loss, residual, _ = _mask_loss(
        logits, labels, boxes, gt_masks, gt_index, weights, sampling_ratio, width, extents, False
    )
    return loss, residual


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
    loss, residual, counts = _mask_loss(
        logits, labels, boxes, gt_masks, gt_index, weights, sampling_ratio, width, extents, True
    )
    assert counts is not None
    return loss, residual, counts


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
) -> tuple[Tensor, Tensor, Tensor | None]:
    num_rois, channels, size, _ = logits.shape
    compute = torch.promote_types(logits.dtype, torch.float32)
    residual = logits.new_empty((num_rois, size, size), dtype=compute)
    if num_rois == 0:
        return logits.new_zeros((), dtype=compute), residual, logits.new_zeros(4, dtype=torch.int64)
    cells = min(triton.next_power_of_2(size), 32)
    parts = triton.cdiv(size, cells)
    losses = logits.new_empty((num_rois, size * parts), dtype=compute)
    counts = logits.new_empty((num_rois, size * parts, 4), dtype=torch.int32) if counted else None
    masks = gt_masks.contiguous()
    packed = masks.dtype == torch.int32
    with tuning.on_device_of(logits):
        tuning.launch(
            _loss_kernel,
            lambda meta: (num_rois, triton.cdiv(size * parts, meta["CELL_ROWS"])),
            (
                logits,
                labels.contiguous(),
                boxes.contiguous(),
                masks if packed else masks.view(torch.uint8),
                None if extents is None else extents.contiguous(),
                gt_index.contiguous(),
                weights.contiguous(),
                weights.sum(dtype=compute),
                losses,
                residual,
                counts,
            ),
            height=masks.shape[1],
            width=masks.shape[2] if width is None else width,
            row_stride=masks.shape[2],
            num_masks=masks.shape[0],
            rois_bucket=tuning.bucket(num_rois),
            image_bucket=tuning.bucket(masks.shape[1] * (masks.shape[2] if width is None else width)),
            stride_k=logits.stride(0),
            stride_c=logits.stride(1),
            stride_h=logits.stride(2),
            stride_w=logits.stride(3),
            CHANNELS=channels,
            SIZE=size,
            CELLS=cells,
            PARTS=parts,
            RATIO=max(sampling_ratio, 0),
            BOUNDED=extents is not None,
            COUNTED=counted,
            enable_fp_fusion=False,
        )
    return losses.sum(), residual, None if counts is None else counts.sum((0, 1))


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
    grad = empty_map(residual, (num_rois, num_channels, size, size), channels_last, dtype)
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

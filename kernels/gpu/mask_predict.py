"""The last 1x1 convolution of the mask branch for one class a RoI, and its gradients, one pass over the features each.

Memory bounds all of it: a feature is read once and used in one multiply-add forward, two backward. The loss is that of
`kernels.gpu.mask_loss` on the logits, which are fewer than the features by the number of channels; a kernel of its own
is spread over cells as a loss that sums over a RoI could not be.

Backward, a program owns a RoI and a block of channels. It writes the gradient by the features, an outer product, while
it sums up its RoI's share of the gradient by the weight; a second kernel adds the shares of the RoIs of a class in the
order of their index. No atomics, and no order of summation that the configuration decides: the same bits at each run
and in every configuration.

A cell is a place in the order of memory, a pixel a place on the mask; the two differ for features in 2x2 blocks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import divide


def summed_at_once(size: int, channels: int, channels_last: bool) -> dict[str, int]:
    """How long a tile is along the dimension that a kernel sums: `BLOCK_C` of the logits', `BLOCK` of the gradients'.

    No configuration chooses it, as it decides the order of summation.
    """
    cells = triton.next_power_of_2(size**2)
    return {
        "BLOCK_C": min(128 if channels_last else 16, triton.next_power_of_2(channels)),
        "BLOCK": min(32 if channels_last else 128, cells),
    }


def prune_tiles(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Tiles of 16 or 32 elements a thread, at most twice what there is; if there is none, the largest of fewer, or else
    the shortest."""
    size, channels = arguments["SIZE"], arguments["CHANNELS"]
    most = {"BLOCK": triton.next_power_of_2(size**2), "BLOCK_C": triton.next_power_of_2(channels)}
    summed = summed_at_once(size, channels, arguments["CHANNELS_LAST"])

    def held(config: triton.Config) -> float:
        tile = summed | config.kwargs
        return float(tile["BLOCK"] * tile["BLOCK_C"] / tuning.threads(config, arguments))

    within = [each for each in configs if all((summed | each.kwargs)[name] <= most[name] for name in most)]
    narrow = [each for each in within if held(each) < 16]
    nearest = max(narrow, key=held) if narrow else min(configs, key=_length)
    return [each for each in within if held(each) in (16, 32)] or [nearest]


def prune_gradient_tiles(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Of `prune_tiles`, channels last rows of 32 channels at least, if there are so many; and without a warp for 8
    channels of contiguous features in float16, which spills.
    """
    fitting = prune_tiles(configs, arguments)
    if arguments["CHANNELS_LAST"]:
        least = min(32, triton.next_power_of_2(arguments["CHANNELS"]))
        return [each for each in fitting if each.kwargs["BLOCK_C"] >= least] or fitting
    if arguments["features_ptr"].dtype != torch.float16:
        return fitting
    return [each for each in fitting if (each.kwargs["BLOCK_C"], each.num_warps) != (8, 1)] or fitting


def _length(config: triton.Config) -> int:
    (length,) = config.kwargs.values()
    return int(length)


# What a tile is long along the dimension that a configuration chooses, and warps.
CELLS = [(32, 4), (16, 4), (16, 2), (64, 8), (8, 1), (128, 4), (256, 4), (64, 2), (128, 2), (64, 1)]
CHANNELS = [(128, 4), (64, 2), (32, 1), (64, 4), (128, 8), (16, 4), (32, 4), (8, 2), (32, 8), (8, 1), (16, 1)]
KEY = ["CHANNELS", "SIZE", "BLOCKED", "CHANNELS_LAST", "rois_bucket"]


@triton.jit
def _tree_sum(values, NEIGHBOURS: tl.constexpr):
    """Sums along the first axis, of a power of two up to 256: two by two neighbours, or the halves, until one is left.

    A sum of two is the same bits in either order, so that neither the layout nor the number of warps shows, as they do
    in a reduction of more. What a thread holds is best summed first.
    """
    COLUMNS: tl.constexpr = values.shape[1]
    for _ in tl.static_range(8):
        if values.shape[0] > 1:
            if NEIGHBOURS:
                values = tl.sum(tl.reshape(values, (values.shape[0] // 2, 2, COLUMNS)), axis=1)
            else:
                values = tl.sum(tl.reshape(values, (2, values.shape[0] // 2, COLUMNS)), axis=0)
    return tl.reshape(values, (COLUMNS,))


@triton.jit
def _pixel(cell, SIZE: tl.constexpr, BLOCKED: tl.constexpr):
    """Where on the mask, row after row, a cell lies."""
    HALF: tl.constexpr = SIZE // 2
    block, place = cell // 4, cell % 4
    in_blocks = (block // HALF * 2 + place // 2) * SIZE + block % HALF * 2 + place % 2 if BLOCKED else cell
    return in_blocks


@triton.jit
def _offset(cell, channel, CHANNELS: tl.constexpr, SIZE: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Where in a RoI's features a tile of cells and channels lies."""
    last = cell[:, None] * CHANNELS + channel[None, :]
    first = cell[:, None] + channel[None, :] * (SIZE * SIZE)
    return last if CHANNELS_LAST else first


@tuning.tuned(
    configs=[triton.Config({"BLOCK": cells}, num_warps=warps) for cells, warps in CELLS],
    key=[*KEY, "SIGMOID"],
    prune=prune_tiles,
)
@triton.jit(do_not_specialize=["num_classes", "rois_bucket"])
def _logits_kernel(
    features_ptr,  # [K, SIZE SIZE, CHANNELS], or [K, CHANNELS, SIZE SIZE]
    weight_ptr,  # [classes, CHANNELS]
    bias_ptr,  # [classes]
    labels_ptr,  # [K]
    out_ptr,  # [K, SIZE, SIZE] the result
    num_classes,
    rois_bucket,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCKED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SIGMOID: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program: (RoI, BLOCK cells). Each BLOCK_C-th channel is summed one after another, and then these sums."""
    roi = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    cell = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < SIZE * SIZE
    label = tl.load(labels_ptr + roi)
    known = (label >= 0) & (label < num_classes)
    features = features_ptr + roi * (SIZE * SIZE * CHANNELS)
    total = tl.zeros((BLOCK, BLOCK_C), dtype)
    for first in range(0, CHANNELS, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        there = (channel < CHANNELS) & known
        weight = tl.load(weight_ptr + label * CHANNELS + channel, mask=there, other=0.0).to(dtype)
        place = features + _offset(cell, channel, CHANNELS, SIZE, CHANNELS_LAST)
        feature = tl.load(place, mask=inside[:, None] & there[None, :], other=0.0).to(dtype)
        total = tl.fma(feature, tl.broadcast_to(weight[None, :], (BLOCK, BLOCK_C)), total)
    bias = tl.load(bias_ptr + label, mask=known, other=float("-inf")).to(dtype)
    logit = _tree_sum(tl.trans(total), CHANNELS_LAST) + bias
    if SIGMOID:
        small = tl.exp(-tl.abs(logit))
        logit = divide(tl.where(logit < 0, small, 1.0), 1.0 + small)
    tl.store(out_ptr + roi * (SIZE * SIZE) + _pixel(cell, SIZE, BLOCKED), logit, mask=inside)


@tuning.tuned(
    configs=[triton.Config({"BLOCK_C": channels}, num_warps=warps) for channels, warps in CHANNELS],
    key=KEY,
    prune=prune_gradient_tiles,
)
@triton.jit(do_not_specialize=["num_classes", "rois_bucket"])
def _class_gradient_kernel(
    grad_logits_ptr,  # [K, SIZE, SIZE]
    features_ptr,  # [K, SIZE SIZE, CHANNELS], or [K, CHANNELS, SIZE SIZE]
    weight_ptr,  # [classes, CHANNELS]
    labels_ptr,  # [K]
    grad_features_ptr,  # as the features: the result
    share_ptr,  # [K, CHANNELS] each RoI's share of the gradient by the weight; unwritten where the label is no class
    bias_share_ptr,  # [K] and by the bias
    num_classes,
    rois_bucket,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCKED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program: (RoI, BLOCK_C channels). Each BLOCK-th cell is summed one after another, and then these sums."""
    roi = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = share_ptr.dtype.element_ty
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < CHANNELS
    label = tl.load(labels_ptr + roi)
    known = (label >= 0) & (label < num_classes)
    weight = tl.load(weight_ptr + label * CHANNELS + channel, mask=there & known, other=0.0).to(dtype)
    start = roi * (SIZE * SIZE * CHANNELS)
    total = tl.zeros((BLOCK, BLOCK_C), dtype)
    bias_total = tl.zeros((BLOCK,), dtype)
    for first in range(0, SIZE * SIZE, BLOCK):
        cell = first + tl.arange(0, BLOCK)
        inside = cell < SIZE * SIZE
        pixel = roi * (SIZE * SIZE) + _pixel(cell, SIZE, BLOCKED)
        # A RoI without a class may hold anything: neither its gradient nor its features are looked at.
        grad = tl.load(grad_logits_ptr + pixel, mask=inside & known, other=0.0)
        place = start + _offset(cell, channel, CHANNELS, SIZE, CHANNELS_LAST)
        tile = inside[:, None] & there[None, :]
        feature = tl.load(features_ptr + place, mask=tile & known, other=0.0).to(dtype)
        total = tl.fma(feature, tl.broadcast_to(grad[:, None], (BLOCK, BLOCK_C)), total)
        bias_total += grad
        product = grad[:, None] * weight[None, :]
        tl.store(grad_features_ptr + place, product.to(grad_features_ptr.dtype.element_ty), mask=tile)
    tl.store(share_ptr + roi * CHANNELS + channel, _tree_sum(total, not CHANNELS_LAST), mask=there & known)
    bias = tl.sum(_tree_sum(bias_total[:, None], True), axis=0)  # of one
    tl.store(bias_share_ptr + roi, bias, mask=known & (tl.program_id(1) == 0))


@tuning.tuned(
    configs=[
        triton.Config({"BLOCK_C": channels}, num_warps=warps)
        for channels, warps in [(64, 4), (128, 4), (32, 4), (32, 1), (16, 4), (16, 1)]
    ],
    key=["CHANNELS", "rois_bucket"],
    prune=tuning.within_channels,
)
@triton.jit(do_not_specialize=["num_rois", "rois_bucket"])
def _class_sum_kernel(
    labels_ptr,  # [K]
    share_ptr,  # [K, CHANNELS]
    bias_share_ptr,  # [K]
    grad_weight_ptr,  # [classes, CHANNELS] the result
    grad_bias_ptr,  # [classes] the result
    num_rois,
    rois_bucket,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program: (class, BLOCK_C channels). Each ROWS-th RoI is summed one after another, and then these sums."""
    number = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = share_ptr.dtype.element_ty
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < CHANNELS
    total = tl.zeros((ROWS, BLOCK_C), dtype)
    bias_total = tl.zeros((ROWS,), dtype)
    for first in range(0, num_rois, ROWS):
        roi = (first + tl.arange(0, ROWS)).to(tl.int64)
        own = tl.load(labels_ptr + roi, mask=roi < num_rois, other=-1) == number
        place = share_ptr + roi[:, None] * CHANNELS + channel[None, :]
        total += tl.load(place, mask=own[:, None] & there[None, :], other=0.0)
        bias_total += tl.load(bias_share_ptr + roi, mask=own, other=0.0)
    weight = _tree_sum(total, False).to(grad_weight_ptr.dtype.element_ty)
    tl.store(grad_weight_ptr + number * CHANNELS + channel, weight, mask=there)
    bias = tl.sum(_tree_sum(bias_total[:, None], False), axis=0)  # of one
    tl.store(grad_bias_ptr + number, bias.to(grad_bias_ptr.dtype.element_ty), mask=tl.program_id(1) == 0)


def mask_predict(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """See `kernels.mask_predict`."""
    return _logits(features, weight, bias, labels, sigmoid=True)


def class_logits(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Logits of each RoI's class [K, M, M]; -inf, and so a probability of 0, for a label that is no class."""
    return _logits(features, weight, bias, labels, sigmoid=False)


def mask_predict_backward(
    grad_logits: Tensor, features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of features, weight and bias; a RoI whose label is no class has none and adds none."""
    form = _form(features)
    num_rois, channels, (classes, _) = features.shape[0], form["CHANNELS"], weight.shape
    grad_features = torch.empty_like(features)
    grad_weight, grad_bias = weight.new_empty(weight.shape), bias.new_empty(bias.shape)
    share = grad_logits.new_empty((num_rois, channels))
    bias_share = grad_logits.new_empty(num_rois)
    labels = labels.contiguous()
    with tuning.on_device_of(features):
        if num_rois > 0:
            tuning.launch(
                _class_gradient_kernel,
                lambda meta: (num_rois, triton.cdiv(channels, meta["BLOCK_C"])),
                (grad_logits.contiguous(), features, weight.contiguous(), labels, grad_features, share, bias_share),
                num_classes=classes,
                **form,
                BLOCK=summed_at_once(form["SIZE"], channels, form["CHANNELS_LAST"])["BLOCK"],
                enable_fp_fusion=False,
            )
        tuning.launch(
            _class_sum_kernel,
            lambda meta: (classes, triton.cdiv(channels, meta["BLOCK_C"])),
            (labels, share, bias_share, grad_weight, grad_bias),
            num_rois=num_rois,
            rois_bucket=form["rois_bucket"],
            CHANNELS=channels,
            ROWS=32,
            enable_fp_fusion=False,
        )
    return grad_features, grad_weight, grad_bias


def _logits(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, *, sigmoid: bool) -> Tensor:
    """Logits of each RoI's class [K, M, M], or their sigmoid; -inf, or 0, for a label that is no class."""
    form = _form(features)
    num_rois, size = features.shape[0], form["SIZE"]
    logits = features.new_empty((num_rois, size, size), dtype=torch.promote_types(features.dtype, torch.float32))
    if num_rois == 0:
        return logits
    with tuning.on_device_of(features):
        tuning.launch(
            _logits_kernel,
            lambda meta: (num_rois, triton.cdiv(size * size, meta["BLOCK"])),
            (features, weight.contiguous(), bias.contiguous(), labels.contiguous(), logits),
            num_classes=weight.shape[0],
            **form,
            SIGMOID=sigmoid,
            BLOCK_C=summed_at_once(size, form["CHANNELS"], form["CHANNELS_LAST"])["BLOCK_C"],
            enable_fp_fusion=False,
        )
    return logits


def _form(features: Tensor) -> dict[str, Any]:
    """What the kernels know of features: a contiguous [K, C, M, M] or [K, M/2, M/2, 2, 2, C], or channels last."""
    blocked = features.ndim == 6
    return {
        "rois_bucket": tuning.bucket(features.shape[0]),
        "CHANNELS": features.shape[5] if blocked else features.shape[1],
        "SIZE": 2 * features.shape[1] if blocked else features.shape[2],
        "BLOCKED": blocked,
        "CHANNELS_LAST": blocked or not features.is_contiguous(),
    }

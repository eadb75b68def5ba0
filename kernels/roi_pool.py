"""RoIPool (Fast R-CNN, section 2.1): the largest value of each bin, bins and boxes rounded to whole pixels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.checks import check_positive, check_tensor
from kernels.dispatch import asked_for, run, values_may_be_read
from kernels.memory_format import dense, empty_map, taken_channels_last
from kernels.roi_align import check_image_index, checked_rois, checked_size


def roi_pool(
    input: Tensor, boxes: Tensor | Sequence[Tensor], output_size: int | Sequence[int], spatial_scale: float = 1.0
) -> Tensor:
    """Pools each box of a feature map to a fixed size by the maximum of each bin; torchvision.ops.roi_pool.

    Corners are rounded to pixels, halves away from 0, and belong to the box; bins are rounded outward. Corners farther
    away than 2^29 pixels are taken to be there. Box geometry is computed in float32 whatever the dtype of the features
    (float64 for float64). A bin outside the map gives 0, as does a box with a NaN or infinite coordinate.
    Features that are NaN or below float32's range are passed over. The gradient goes to `input` only, to the first of
    equal values, and is the same bits at each run.

    Args:
        input: features [N, C, H, W] in float32, float16, bfloat16 or float64, contiguous or channels last.
        boxes: [K, 5] rows of image index, x1, y1, x2, y2, or one [K_i, 4] an image, in pixels of the image.
        output_size: pooled height and width, or one number for both.
        spatial_scale: feature pixels per image pixel.

    Returns:
        Pooled features [K, C, *output_size], in the dtype and memory format of `input`.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    check_tensor("input", input, ("N", "C", "H", "W"), filled=("H", "W"))
    check_positive("spatial_scale", spatial_scale)
    if input.shape[2] * input.shape[3] >= 2**31:  # the place of a maximum is remembered in 32 bits
        raise ValueError(f"input is {tuple(input.shape)}; its maps must have fewer than 2^31 pixels")
    size, rois = checked_size(output_size), checked_rois(boxes, input).detach()
    pooled, _ = _roi_pool(input, rois, size, float(spatial_scale), asked_for())
    result: Tensor = pooled
    return result


@torch.library.custom_op("mrcnn::roi_pool", mutates_args=())
def _roi_pool(
    input: Tensor, rois: Tensor, output_size: Sequence[int], spatial_scale: float, implementation: str
) -> tuple[Tensor, Tensor]:
    """Pooled features, and where on the map each is from [K, C, *output_size]: y * W + x in int32, -1 for nowhere."""
    if rois.numel() and values_may_be_read(rois, implementation):
        check_image_index(rois, input.shape[0])
    if input.numel() == 0:  # no image or no channel
        shape = (rois.shape[0], input.shape[1], output_size[0], output_size[1])
        return empty_map(input, shape, False).zero_(), empty_map(input, shape, False, torch.int32).fill_(-1)
    arguments = (dense(input, taken_channels_last(input)), rois, (output_size[0], output_size[1]), spatial_scale)
    pooled, source = run(implementation, "roi_pool", "roi_pool", input.device, *arguments)
    return pooled, source


@_roi_pool.register_fake
def _(
    input: Tensor, rois: Tensor, output_size: Sequence[int], spatial_scale: float, implementation: str
) -> tuple[Tensor, Tensor]:
    shape = (rois.shape[0], input.shape[1], output_size[0], output_size[1])
    last = taken_channels_last(input)
    return empty_map(input, shape, last), empty_map(input, shape, last, torch.int32)


@torch.library.custom_op("mrcnn::roi_pool_backward", mutates_args=())
def _roi_pool_backward(
    grad: Tensor,
    source: Tensor,
    rois: Tensor,
    input_size: Sequence[int],
    channels_last: bool,
    spatial_scale: float,
    implementation: str,
) -> Tensor:
    images, channels, height, width = input_size
    if 0 in input_size:  # no image or no channel
        return empty_map(grad, input_size, channels_last)
    arguments = (grad, source, rois, (images, channels, height, width), channels_last, spatial_scale)
    result: Tensor = run(implementation, "roi_pool", "roi_pool_backward", grad.device, *arguments)
    return result


@_roi_pool_backward.register_fake
def _(
    grad: Tensor,
    source: Tensor,
    rois: Tensor,
    input_size: Sequence[int],
    channels_last: bool,
    spatial_scale: float,
    implementation: str,
) -> Tensor:
    return empty_map(grad, input_size, channels_last)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, rois, _, ctx.spatial_scale, ctx.implementation = inputs
    _, source = output
    ctx.mark_non_differentiable(source)
    ctx.set_materialize_grads(False)  # none for the source, which would be zeros to fill
    ctx.save_for_backward(source, rois)
    ctx.input_size, ctx.channels_last = list(input.shape), taken_channels_last(input)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    source, rois = ctx.saved_tensors
    result = _roi_pool_backward(
        grad, source, rois, ctx.input_size, ctx.channels_last, ctx.spatial_scale, ctx.implementation
    )
    return (result, *[None] * 4)


_roi_pool.register_autograd(_backward, setup_context=_setup_context)

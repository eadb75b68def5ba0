"""RoIAlign (Mask R-CNN, section 3), for one feature map and for a feature pyramid at once."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kernels.checks import (
    check_flag,
    check_positive,
    check_sampling_ratio,
    check_size,
    check_tensor,
    check_values,
    check_whole,
    is_list,
    is_positive,
    is_whole,
)
from kernels.dispatch import asked_for, run, values_may_be_read
from kernels.memory_format import dense, empty_map, taken_channels_last


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Pools each box of a feature map to a fixed size by averaging bilinear samples; torchvision.ops.roi_align.

    Box geometry is computed in float32 and sums are kept in float32 whatever the dtype of the features (float64 for
    float64). A box with a NaN or infinite coordinate gives zeros. The gradient goes to `input` only and is the same
    bits at each run.

    Args:
        input: features [N, C, H, W] in float32, float16, bfloat16 or float64, contiguous or channels last.
        boxes: [K, 5] rows of image index, x1, y1, x2, y2, or one [K_i, 4] an image, in pixels of the image.
        output_size: pooled height and width, or one number for both.
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: samples a bin along each axis, at most 128; 0 or less takes as many as there are pixels,
            rounded up.
        aligned: shifts the boxes by half a pixel, which aligns pixel centres; boxes are then not made at least 1 wide.

    Returns:
        Pooled features [K, C, *output_size], in the dtype and memory format of `input`.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    check_tensor("input", input, ("N", "C", "H", "W"), filled=("H", "W"))
    check_positive("spatial_scale", spatial_scale)
    return _pool([input], boxes, output_size, [spatial_scale], sampling_ratio, aligned, 224.0, 4)


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_scale: float = 224,
    canonical_level: int = 4,
) -> Tensor:
    """RoIAlign on the pyramid level that suits each box's size, for all levels and images at once.

    A box of area w x h takes level floor(canonical_level + log2(sqrt(w h) / canonical_scale) + 1e-6), limited to
    the levels there are (Feature Pyramid Networks, equation 1); torchvision.ops.MultiScaleRoIAlign.

    Args:
        features: levels from fine to coarse, each [N, C, H_l, W_l], of one dtype and memory format.
        boxes: [K, 5] rows of image index, x1, y1, x2, y2, or one [K_i, 4] an image, in pixels of the image.
        output_size: pooled height and width, or one number for both.
        spatial_scales: feature pixels per image pixel of each level, powers of two, each half of the one before, as
            1/4, 1/8, 1/16, 1/32.
        sampling_ratio: see `roi_align`.
        aligned: see `roi_align`.
        canonical_scale: side of a box, in image pixels, that belongs to `canonical_level`.
        canonical_level: level (log2 of the stride) for boxes of `canonical_scale`.

    Returns:
        Pooled features [K, C, *output_size], in the dtype and memory format of `features`.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    levels: Any = features
    if isinstance(levels, Iterable) and not isinstance(levels, (Tensor, Mapping)):
        levels = list(levels)  # as the values of a dictionary
    _check_pyramid(levels, spatial_scales)
    check_positive("canonical_scale", canonical_scale)
    check_whole("canonical_level", canonical_level)
    return _pool(
        levels,
        boxes,
        output_size,
        list(map(float, spatial_scales)),
        sampling_ratio,
        aligned,
        canonical_scale,
        canonical_level,
    )


def _pool(
    features: list[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scales: list[float],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> Tensor:
    size = checked_size(output_size)
    check_sampling_ratio(sampling_ratio)
    check_flag("aligned", aligned)
    rois = checked_rois(boxes, features[0]).detach()
    result: Tensor = _roi_align(
        features,
        rois,
        spatial_scales,
        size,
        sampling_ratio,
        bool(aligned),
        canonical_scale,
        canonical_level,
        asked_for(),
    )
    return result


def _check_pyramid(features: list[Tensor], spatial_scales: Sequence[float]) -> None:
    if not isinstance(features, list) or not features:
        kind = "empty" if isinstance(features, list) else f"of kind {type(features).__name__}"
        raise ValueError(f"features is {kind}; it must be a list of one tensor or more")
    first, *others = features
    check_tensor("features[0]", first, ("N", "C", "H", "W"), filled=("H", "W"))
    shape, dtypes = (*first.shape[:2], "H", "W"), (first.dtype,)
    for level, feature in enumerate(others, 1):
        check_tensor(f"features[{level}]", feature, shape, dtypes=dtypes, device=first.device, filled=("H", "W"))
    levels = len(features)
    if not is_list(spatial_scales) or len(spatial_scales) != levels or not all(map(is_positive, spatial_scales)):
        raise ValueError(
            f"spatial_scales is {spatial_scales!r}; it must be {levels} finite numbers above 0, one a level"
        )
    if others and (
        math.log2(spatial_scales[0]) % 1 or any(coarse * 2 != fine for fine, coarse in pairwise(spatial_scales))
    ):
        raise ValueError(f"spatial_scales is {spatial_scales}; it must be powers of two, each half of the one before")


def checked_size(output_size: int | Sequence[int]) -> list[int]:
    """Height and width."""
    size: Any = [output_size, output_size] if is_whole(output_size) else output_size
    check_size("output_size", size)
    return list(size)


def checked_rois(boxes: Tensor | Sequence[Tensor], features: Tensor) -> Tensor:
    """Rows [K, 5] of image index, x1, y1, x2, y2, in the precision of box geometry; or from one [K_i, 4] an image."""
    dtype, device = torch.promote_types(features.dtype, torch.float32), features.device
    if isinstance(boxes, Tensor):
        check_tensor("boxes", boxes, ("K", 5), device=device)
        return boxes.to(dtype)
    if not isinstance(boxes, Sequence):
        raise ValueError(f"boxes is of kind {type(boxes).__name__}; it must be a tensor, or a list of one an image")
    if len(boxes) != features.shape[0]:
        raise ValueError(f"boxes is a list of {len(boxes)}; it must be a list of {features.shape[0]}, one an image")
    if not boxes:
        return features.new_empty((0, 5), dtype=dtype)
    for image, box in enumerate(boxes):
        check_tensor(f"boxes[{image}]", box, ("K", 4), device=device)
    # Half precision has no place for the index of an image.
    index = [box.new_full((box.shape[0], 1), image, dtype=dtype) for image, box in enumerate(boxes)]
    return torch.cat([torch.cat(index), torch.cat(list(boxes)).to(dtype)], dim=1)


@torch.library.custom_op("mrcnn::roi_align", mutates_args=())
def _roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    spatial_scales: Sequence[float],
    output_size: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
    implementation: str,
) -> Tensor:
    if rois.numel() and values_may_be_read(rois, implementation):
        check_image_index(rois, features[0].shape[0])
    if features[0].numel() == 0:  # no image or no channel
        shape = (rois.shape[0], features[0].shape[1], output_size[0], output_size[1])
        return empty_map(features[0], shape, False).zero_()
    channels_last = taken_channels_last(features[0])
    result: Tensor = run(
        implementation,
        "roi_align",
        "roi_align",
        rois.device,
        [dense(feature, channels_last) for feature in features],
        rois,
        list(spatial_scales),
        (output_size[0], output_size[1]),
        sampling_ratio,
        aligned,
        canonical_scale,
        canonical_level,
    )
    return result


def check_image_index(rois: Tensor, images: int) -> None:
    """Only values tell. NaN boxes are allowed, they give zeros."""
    index = rois[:, 0]
    check_values("boxes[:, 0]", index, 0, images - 1, ~index.isnan())


@_roi_align.register_fake
def _(
    features: Sequence[Tensor],
    rois: Tensor,
    spatial_scales: Sequence[float],
    output_size: Sequence[int],
    *args: Any,
) -> Tensor:
    shape = (rois.shape[0], features[0].shape[1], output_size[0], output_size[1])
    return empty_map(features[0], shape, taken_channels_last(features[0]))


@torch.library.custom_op("mrcnn::roi_align_backward", mutates_args=())
def _roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    feature_sizes: Sequence[int],
    channels_last: bool,
    spatial_scales: Sequence[float],
    output_size: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
    implementation: str,
) -> list[Tensor]:
    if 0 in feature_sizes:  # no image or no channel
        return [empty_map(grad, shape, channels_last) for shape in _shapes(feature_sizes)]
    grads: list[Tensor] = run(
        implementation,
        "roi_align",
        "roi_align_backward",
        grad.device,
        grad,
        rois,
        _shapes(feature_sizes),
        channels_last,
        list(spatial_scales),
        (output_size[0], output_size[1]),
        sampling_ratio,
        aligned,
        canonical_scale,
        canonical_level,
    )
    return grads


@_roi_align_backward.register_fake
def _(grad: Tensor, rois: Tensor, feature_sizes: Sequence[int], channels_last: bool, *args: Any) -> list[Tensor]:
    return [empty_map(grad, shape, channels_last) for shape in _shapes(feature_sizes)]


def _shapes(feature_sizes: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """A schema has no list of lists: the levels' N, C, H, W come one after another."""
    it = iter(feature_sizes)
    return list(zip(it, it, it, it, strict=True))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, *ctx.arguments = inputs
    ctx.save_for_backward(rois)
    ctx.feature_sizes = [size for feature in features for size in feature.shape]
    ctx.channels_last = taken_channels_last(features[0])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (rois,) = ctx.saved_tensors
    grads = _roi_align_backward(grad, rois, ctx.feature_sizes, ctx.channels_last, *ctx.arguments)
    return (grads, None, *[None] * len(ctx.arguments))


_roi_align.register_autograd(_backward, setup_context=_setup_context)

"""RoIAlign as the paper's section 3 defines it: average of bilinear samples, one RoI after another."""

import math

import torch
from torch import Tensor


def roi_align(
    features: list[Tensor],
    rois: Tensor,
    spatial_scales: list[float],
    output_size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> Tensor:
    """See `kernels.multiscale_roi_align`. features: [N, C, H, W] a level, rois: [K, 5]; [K, C, *output_size]."""
    compute = torch.promote_types(features[0].dtype, torch.float32)
    pooled = features[0].new_zeros((rois.shape[0], features[0].shape[1], *output_size), dtype=compute)
    for bins, roi in zip(pooled, rois, strict=True):
        level = _level(roi, spatial_scales, canonical_scale, canonical_level)
        if level is not None and _usable(roi, features[level].shape[0]):
            feature = features[level][int(roi[0])].to(compute)
            bins.copy_(_one_roi(feature, roi, spatial_scales[level], output_size, sampling_ratio, aligned))
    result = pooled.to(features[0].dtype)
    channels_last = not features[0].is_contiguous()
    return result.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    feature_shapes: list[tuple[int, int, int, int]],
    channels_last: bool,
    spatial_scales: list[float],
    output_size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> list[Tensor]:
    """The gradient for each level: each bin's gradient goes to the pixels that its samples were taken from."""
    compute = torch.promote_types(grad.dtype, torch.float32)
    grads = [grad.new_zeros(shape, dtype=compute) for shape in feature_shapes]
    for bin_grad, roi in zip(grad.to(compute), rois, strict=True):
        level = _level(roi, spatial_scales, canonical_scale, canonical_level)
        if level is None or not _usable(roi, feature_shapes[level][0]):
            continue
        y, x = _sample_grid(roi, spatial_scales[level], output_size, sampling_ratio, aligned)
        share = bin_grad[:, :, None, :, None] / max(y.shape[1] * y.shape[3], 1)
        for weight, row, column in _corners(y, x, *feature_shapes[level][2:]):
            image_grad = grads[level][int(roi[0])]
            channel = torch.arange(image_grad.shape[0], device=grad.device).view(-1, 1, 1, 1, 1)
            image_grad.index_put_((channel, row, column), weight.to(compute) * share, accumulate=True)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return [each.to(grad.dtype).contiguous(memory_format=memory_format) for each in grads]


def _level(roi: Tensor, spatial_scales: list[float], canonical_scale: float, canonical_level: int) -> int | None:
    """Feature Pyramid Networks, equation 1, with torchvision's 1e-6, computed in the precision of the box.

    None if the area is negative.
    """
    if len(spatial_scales) == 1:
        return 0
    _, x1, y1, x2, y2 = roi
    level = torch.floor(canonical_level + torch.log2(torch.sqrt((x2 - x1) * (y2 - y1)) / canonical_scale) + 1e-6)
    if torch.isnan(level):
        return None
    finest, coarsest = -math.log2(spatial_scales[0]), -math.log2(spatial_scales[-1])
    return int(level.clamp(finest, coarsest)) - int(finest)


def _usable(roi: Tensor, images: int) -> bool:
    return bool(torch.isfinite(roi[3:] - roi[1:3]).all()) and 0 <= float(roi[0]) < images


def _one_roi(
    feature: Tensor,
    roi: Tensor,
    scale: float,
    output_size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """feature: [C, H, W], roi: [5]; the pooled RoI [C, PH, PW]."""
    y, x = _sample_grid(roi, scale, output_size, sampling_ratio, aligned)
    corners = _corners(y, x, *feature.shape[1:])
    values = [weight.to(feature.dtype) * feature[:, row, column] for weight, row, column in corners]
    samples = torch.stack(values).sum(dim=0)
    return samples.sum(dim=(2, 4)) / max(y.shape[1] * y.shape[3], 1)


def _sample_grid(
    roi: Tensor, scale: float, output_size: tuple[int, int], sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Positions y, x [PH, samples a bin, PW, samples a bin] in pixels of the feature map."""
    x1, y1, x2, y2 = roi[1:] * scale - (0.5 if aligned else 0.0)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = width.clamp(min=1.0), height.clamp(min=1.0)
    ys = _sample_positions(y1, height, output_size[0], sampling_ratio)
    xs = _sample_positions(x1, width, output_size[1], sampling_ratio)
    shape = (*ys.shape, *xs.shape)
    return ys[:, :, None, None].expand(shape), xs[None, None].expand(shape)


def _sample_positions(start: Tensor, length: Tensor, bins: int, sampling_ratio: int) -> Tensor:
    """Regular sampling positions [bins, samples a bin] along one axis."""
    samples = sampling_ratio if sampling_ratio > 0 else max(math.ceil(length / bins), 0)
    bin_size = length / bins
    bin_index = torch.arange(bins, dtype=start.dtype, device=start.device)[:, None]
    sample_index = torch.arange(samples, dtype=start.dtype, device=start.device)
    return start + bin_index * bin_size + (sample_index + 0.5) * bin_size / max(samples, 1)


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Weight, row and column of the four pixels around each position.

    More than a pixel outside the map all weights are zero; up to there the border's value holds.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor().long(), x.floor().long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, across = y - top, x - left
    return [
        (inside * (1 - down) * (1 - across), top, left),
        (inside * (1 - down) * across, top, right),
        (inside * down * (1 - across), bottom, left),
        (inside * down * across, bottom, right),
    ]

"""RoIAlign as a weighted sum of feature rows.

With channels last, a feature map is a table of rows, one a pixel, and a pooled bin is a weighted sum of a few of
them: `embedding_bag`, which reads each row whole. Bilinear sampling on a regular grid is separable, so a bin's weights
are the outer product of a few taps along y and a few along x; samples at most a pixel apart share their taps. The
backward pass is the transposed sum: the (pixel, bin, weight) triples are sorted by pixel, stably, and each pixel
gathers its bins in that order, which needs no atomics and gives the same bits each time.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


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
    channels = features[0].shape[1]
    compute = torch.promote_types(features[0].dtype, torch.float32)
    shapes = [feature.shape for feature in features]
    pooled = features[0].new_empty((rois.shape[0], *output_size, channels), dtype=compute)
    untouched = torch.ones(rois.shape[0], dtype=torch.bool, device=rois.device)
    # Sums of a few MB stay in memory that the allocator hands out again, without page faults.
    chunk = max(1, 2**21 // (channels * output_size[0] * output_size[1]))
    for bags in _bags(
        shapes, rois, spatial_scales, output_size, sampling_ratio, aligned, canonical_scale, canonical_level
    ):
        rows = features[bags.level].permute(0, 2, 3, 1).reshape(-1, channels).to(compute)
        for some, pixels, weights in zip(*bags.split(chunk), strict=True):
            sums = embedding_bag(pixels, rows, per_sample_weights=weights.to(compute), mode="sum")
            pooled[some] = sums.view(-1, *output_size, channels)
        untouched[bags.rois] = False
    pooled[untouched] = 0
    result = pooled.to(features[0].dtype).permute(0, 3, 1, 2)
    return result.contiguous() if features[0].is_contiguous() else result


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
    """The gradient for each level, from grad [K, C, *output_size]."""
    channels = grad.shape[1]
    compute = torch.promote_types(grad.dtype, torch.float32)
    rows = grad.permute(0, 2, 3, 1).reshape(-1, channels).to(compute).contiguous()
    bins = torch.arange(rows.shape[0], device=grad.device).view(-1, output_size[0] * output_size[1])
    triples: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in feature_shapes]
    for bags in _bags(
        feature_shapes,
        rois,
        spatial_scales,
        output_size,
        sampling_ratio,
        aligned,
        canonical_scale,
        canonical_level,
    ):
        bag_bins = bins[bags.rois].view(-1, 1).expand_as(bags.pixels)
        triples[bags.level].append((bags.pixels.flatten(), bag_bins.flatten(), bags.weights.flatten()))
    grads = []
    for (number, _, height, width), level in zip(feature_shapes, triples, strict=True):
        if level:
            pixels, bag_bins, weights = (torch.cat(parts) for parts in zip(*level, strict=True))
            total = _gather(rows, pixels, bag_bins, weights.to(compute), number * height * width)
        else:
            total = rows.new_zeros((number * height * width, channels))
        grad_level = total.to(grad.dtype).view(number, height, width, channels).permute(0, 3, 1, 2)
        grads.append(grad_level if channels_last else grad_level.contiguous())
    return grads


def _gather(rows: Tensor, pixels: Tensor, bins: Tensor, weights: Tensor, num_pixels: int) -> Tensor:
    """For each pixel the weighted sum of the rows of its bins [num_pixels, C], in the order in which they come."""
    if num_pixels < 2**31:
        pixels = pixels.int()  # sorts in half the time
    pixels, order = torch.sort(pixels, stable=True)
    offsets = pixels.new_zeros(num_pixels + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(pixels, minlength=num_pixels), 0, out=offsets[1:])
    return embedding_bag(
        bins[order], rows, offsets, per_sample_weights=weights[order], mode="sum", include_last_offset=True
    )


@dataclass(frozen=True)
class _Bags:
    """RoIs of one level whose bins have equally many taps."""

    level: int
    rois: Tensor  # [k] which RoIs
    pixels: Tensor  # [k * PH * PW, taps] row of the level's [N * H * W, C] table
    weights: Tensor  # [k * PH * PW, taps]

    def split(self, size: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """RoIs, pixels and weights in pieces of at most `size` RoIs."""
        bins = self.pixels.shape[0] // self.rois.shape[0]
        return self.rois.split(size), self.pixels.split(size * bins), self.weights.split(size * bins)


def _bags(
    shapes: list[tuple[int, int, int, int]] | list[torch.Size],
    rois: Tensor,
    spatial_scales: list[float],
    output_size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> Iterator[_Bags]:
    """Every RoI that can reach a pixel, grouped by level, number of samples and form of the taps."""
    levels = _levels(rois, spatial_scales, canonical_scale, canonical_level)
    finite = torch.isfinite(rois[:, 3:] - rois[:, 1:3]).all(dim=1)
    usable = finite & (rois[:, 0] >= 0) & (rois[:, 0] < shapes[0][0])
    for level, (_, _, height, width) in enumerate(shapes):
        chosen = torch.nonzero(usable & (levels == level))[:, 0]
        if chosen.numel() == 0:
            continue
        image = rois[chosen, 0].long()
        x1, y1, x2, y2 = (rois[chosen, 1:] * spatial_scales[level] - (0.5 if aligned else 0.0)).unbind(1)
        roi_width, roi_height = x2 - x1, y2 - y1
        if not aligned:
            roi_width, roi_height = roi_width.clamp(min=1.0), roi_height.clamp(min=1.0)
        y_form, x_form = (
            tap_form(length / bins, sampling_ratio)
            for length, bins in zip((roi_height, roi_width), output_size, strict=True)
        )
        forms, form_of = torch.unique(torch.cat([y_form, x_form], dim=1), dim=0, return_inverse=True)
        for number, (y_samples, y_shared, x_samples, x_shared) in enumerate(forms.tolist()):
            if y_samples <= 0 or x_samples <= 0:
                continue  # a negative size has no adaptive samples
            group = torch.nonzero(form_of == number)[:, 0]
            y, wy = axis_taps(y1[group], roi_height[group], output_size[0], y_samples, bool(y_shared), height)
            x, wx = axis_taps(x1[group], roi_width[group], output_size[1], x_samples, bool(x_shared), width)
            start = (image[group] * height * width).view(-1, 1, 1, 1, 1)
            pixels = start + (y * width)[:, :, None, :, None] + x[:, None, :, None, :]
            weights = wy[:, :, None, :, None] * wx[:, None, :, None, :]
            taps = y.shape[2] * x.shape[2]
            yield _Bags(level, chosen[group], pixels.view(-1, taps), weights.view(-1, taps))


def _levels(rois: Tensor, spatial_scales: list[float], canonical_scale: float, canonical_level: int) -> Tensor:
    """Index of the level for each RoI [K]; -1, which is none, where the area is NaN or negative."""
    if len(spatial_scales) == 1:
        return rois.new_zeros(rois.shape[0], dtype=torch.int64)
    finest, coarsest = -math.log2(spatial_scales[0]), -math.log2(spatial_scales[-1])
    side = torch.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2]))
    level = torch.floor(canonical_level + torch.log2(side / canonical_scale) + 1e-6)
    return (level.clamp(finest, coarsest) - finest).nan_to_num(-1.0).long()


def tap_form(bin_size: Tensor, sampling_ratio: int) -> Tensor:
    """[k, 2]: samples a bin along an axis, and whether they lie at most a pixel apart and so can share taps."""
    if sampling_ratio > 0:
        samples = torch.full_like(bin_size, sampling_ratio)
    else:
        samples = torch.ceil(bin_size)
    return torch.stack([samples, (bin_size.abs() <= samples).to(samples.dtype)], dim=1).long()


def axis_taps(start: Tensor, length: Tensor, bins: int, samples: int, shared: bool, size: int) -> tuple[Tensor, Tensor]:
    """Positions and weights [k, bins, taps] that average the bilinear samples of each bin along one axis."""
    bin_size = (length / bins).view(-1, 1, 1)
    bin_index = torch.arange(bins, device=start.device, dtype=start.dtype).view(1, -1, 1)
    bin_start = start.view(-1, 1, 1) + bin_index * bin_size
    most = 2 * size + 4  # samples more than half a pixel apart on the map; of an enormous box only these are visited
    enormous = samples > most and bool((bin_size > samples / 2).all())
    sample_index = torch.arange(most if enormous else samples, device=start.device, dtype=start.dtype)
    if enormous:
        sample_index = sample_index + torch.floor((-1 - bin_start) / (bin_size / samples) - 1).clamp(0, samples - most)
    at = bin_start + (sample_index + 0.5) * bin_size / samples
    inside = ((at >= -1) & (at <= size)).to(at.dtype) / samples
    at = at.clamp(0, size - 1)
    low = torch.floor(at)
    if shared:  # consecutive pixels; each sample weighs them by its tent function
        taps = low.amin(dim=2, keepdim=True) + torch.arange(min(samples + 1, size), device=at.device, dtype=at.dtype)
        tents = (1 - (taps[..., None] - at[..., None, :]).abs()).clamp(min=0)
        weights = (tents * inside[..., None, :]).sum(dim=3)
    else:
        taps = torch.cat([low, low + 1], dim=2)
        weights = torch.cat([(1 - (at - low)) * inside, (at - low) * inside], dim=2)
    return taps.clamp(max=size - 1).long(), weights

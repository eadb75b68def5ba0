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
    pooled.index_fill_(0, torch.nonzero(untouched)[:, 0], 0)
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
    usable = finite & (rois[:, 0] >= 0) & (rois[:, 0] < shapes[0][0]) & (levels >= 0)
    chosen = torch.nonzero(usable)[:, 0]
    if chosen.numel() == 0:
        return
    image, level = rois[chosen, 0].long(), levels[chosen]
    scales = rois.new_tensor(spatial_scales)[level]
    height, width = torch.tensor([shape[2:] for shape in shapes], device=rois.device)[level].unbind(1)
    x1, y1, x2, y2 = (rois[chosen, 1:] * scales[:, None] - (0.5 if aligned else 0.0)).unbind(1)
    roi_width, roi_height = x2 - x1, y2 - y1
    if not aligned:
        roi_width, roi_height = roi_width.clamp(min=1.0), roi_height.clamp(min=1.0)
    y_taps = _AxisTaps(y1, roi_height, output_size[0], sampling_ratio, height)
    x_taps = _AxisTaps(x1, roi_width, output_size[1], sampling_ratio, width)
    first_row = image * height * width
    index = torch.int32 if max(shape[0] * shape[2] * shape[3] for shape in shapes) < 2**31 else torch.int64
    kind_of = (level * len(y_taps) + y_taps.form_of) * len(x_taps) + x_taps.form_of
    for kind in torch.unique(kind_of).tolist():
        (of_level, y_form), x_form = divmod(kind // len(x_taps), len(y_taps)), kind % len(x_taps)
        group = torch.nonzero(kind_of == kind)[:, 0]
        y, wy = y_taps.of(group, y_form)
        x, wx = x_taps.of(group, x_form)
        taps = y.shape[2] * x.shape[2]
        if taps == 0:
            continue  # a negative size has no adaptive samples
        row = y.mul_(shapes[of_level][3]).add_(first_row[group].view(-1, 1, 1)).to(index)
        pixels = row[:, :, None, :, None] + x.to(index)[:, None, :, None, :]
        weights = wy[:, :, None, :, None] * wx[:, None, :, None, :]
        yield _Bags(of_level, chosen[group], pixels.view(-1, taps), weights.view(-1, taps))


class _AxisTaps:
    """Positions and weights of all RoIs along one axis, made together for those with the same form of taps.

    Attributes:
        form_of: number of each RoI's form [k].
    """

    def __init__(self, start: Tensor, length: Tensor, bins: int, sampling_ratio: int, size: Tensor) -> None:
        forms, self.form_of = torch.unique(tap_form(length / bins, sampling_ratio), return_inverse=True)
        self._place = torch.empty_like(self.form_of)  # of each RoI among those of its form
        self._taps = []
        for number, form in enumerate(forms.tolist()):
            samples, shared = divmod(form, 2)
            members = torch.nonzero(self.form_of == number)[:, 0]
            self._place[members] = torch.arange(len(members), device=members.device)
            self._taps.append(axis_taps(start[members], length[members], bins, samples, bool(shared), size[members]))

    def __len__(self) -> int:
        return len(self._taps)

    def of(self, group: Tensor, form: int) -> tuple[Tensor, Tensor]:
        """Positions and weights [k, bins, taps] of some RoIs of one form."""
        positions, weights = self._taps[form]
        place = self._place[group]
        return positions[place], weights[place]


def _levels(rois: Tensor, spatial_scales: list[float], canonical_scale: float, canonical_level: int) -> Tensor:
    """Index of the level for each RoI [K]; -1, which is none, where the area is NaN or negative."""
    if len(spatial_scales) == 1:
        return rois.new_zeros(rois.shape[0], dtype=torch.int64)
    finest, coarsest = -math.log2(spatial_scales[0]), -math.log2(spatial_scales[-1])
    side = torch.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2]))
    level = torch.floor(canonical_level + torch.log2(side / canonical_scale) + 1e-6)
    return (level.clamp(finest, coarsest) - finest).nan_to_num(-1.0).long()


def tap_form(bin_size: Tensor, sampling_ratio: int) -> Tensor:
    """Twice the samples of a bin along an axis, plus 1 if they lie at most a pixel apart and so can share taps [k]."""
    if sampling_ratio > 0:
        samples = torch.full_like(bin_size, sampling_ratio)
    else:
        samples = torch.ceil(bin_size)
    return 2 * samples.long() + (bin_size.abs() <= samples)


def axis_taps(
    start: Tensor, length: Tensor, bins: int, samples: int, shared: bool, size: Tensor | int
) -> tuple[Tensor, Tensor]:
    """Positions and weights [k, bins, taps] that average the bilinear samples of each bin along one axis.

    `size` is that of the map along the axis, one for all or one for each RoI.
    """
    sizes = torch.as_tensor(size, device=start.device)
    largest, last = int(sizes.max()), (sizes - 1).view(-1, 1, 1)
    samples = max(samples, 0)
    bin_size = (length / bins).view(-1, 1, 1)
    bin_index = torch.arange(bins, device=start.device, dtype=start.dtype).view(1, -1, 1)
    bin_start = start.view(-1, 1, 1) + bin_index * bin_size
    most = 2 * largest + 4  # samples more than half a pixel apart on the map; of an enormous box only these are visited
    enormous = samples > most and bool((bin_size > samples / 2).all())
    sample_index = torch.arange(most if enormous else samples, device=start.device, dtype=start.dtype)
    if enormous:
        sample_index = sample_index + torch.floor((-1 - bin_start) / (bin_size / samples) - 1).clamp(0, samples - most)
    at = bin_start + (sample_index + 0.5) * bin_size / samples
    inside = ((at >= -1) & (at <= last + 1)).to(at.dtype) / samples
    at = torch.minimum(at.clamp(min=0), last.to(at.dtype))
    low = torch.floor(at)
    if shared and samples > 0:  # consecutive pixels; each sample weighs them by its tent function
        taps = low.amin(dim=2, keepdim=True) + torch.arange(min(samples + 1, largest), device=at.device, dtype=at.dtype)
        tents = (1 - (taps[..., None] - at[..., None, :]).abs()).clamp(min=0)
        weights = (tents * inside[..., None, :]).sum(dim=3)
    else:
        taps = torch.cat([low, low + 1], dim=2)
        weights = torch.cat([(1 - (at - low)) * inside, (at - low) * inside], dim=2)
    return torch.minimum(taps.long(), last), weights

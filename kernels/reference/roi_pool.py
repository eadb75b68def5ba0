"""RoIPool of Fast R-CNN, section 2.1, bin by bin, with torchvision's rounding."""

import math

import torch
from torch import Tensor


def roi_pool(input: Tensor, rois: Tensor, output_size: tuple[int, int], spatial_scale: float) -> tuple[Tensor, Tensor]:
    """See `kernels.roi_pool`. Pooled features and where on the map each is from, y * W + x or -1."""
    _, channels, height, width = input.shape
    pooled = input.new_zeros((rois.shape[0], channels, *output_size))
    source = torch.full_like(pooled, -1, dtype=torch.int32)
    for k, roi in enumerate(rois):
        if not bool(torch.isfinite(roi * spatial_scale).all()):
            continue
        x1, y1, x2, y2 = (_round(each) for each in (roi[1:] * spatial_scale).tolist())
        columns = _bins(x1, x2, output_size[1], width, roi)
        for row, (top, bottom) in enumerate(_bins(y1, y2, output_size[0], height, roi)):
            for column, (left, right) in enumerate(columns):
                if bottom <= top or right <= left:
                    continue
                lowest = torch.finfo(torch.float32).min
                values = input[int(roi[0]), :, top:bottom, left:right].flatten(1).to(rois.dtype)
                values = torch.where(values > lowest, values, lowest)  # false for NaN
                best = values.amax(dim=1, keepdim=True)
                at = (values == best).to(torch.uint8).argmax(dim=1)  # the first of equal ones
                pixel = (top + at // (right - left)) * width + left + at % (right - left)
                pooled[k, :, row, column] = best[:, 0].to(input.dtype)
                source[k, :, row, column] = torch.where(best[:, 0] > lowest, pixel, -1).to(torch.int32)
    memory_format = torch.contiguous_format if input.is_contiguous() else torch.channels_last
    return pooled.contiguous(memory_format=memory_format), source.contiguous(memory_format=memory_format)


def roi_pool_backward(
    grad: Tensor,
    source: Tensor,
    rois: Tensor,
    input_size: tuple[int, int, int, int],
    channels_last: bool,
    spatial_scale: float,
) -> Tensor:
    """The gradient of the features [N, C, H, W]: each bin's goes to the pixel that it is from."""
    compute = torch.promote_types(grad.dtype, torch.float32)
    total = grad.new_zeros(input_size, dtype=compute).flatten(2)
    for k in range(rois.shape[0]):
        for channel in range(input_size[1]):
            for pixel, value in zip(source[k, channel].flatten(), grad[k, channel].flatten(), strict=True):
                if pixel >= 0:
                    total[int(rois[k, 0]), channel, pixel] += value.to(compute)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return total.view(input_size).to(grad.dtype).contiguous(memory_format=memory_format)


def _round(value: float) -> int:
    """To the nearest whole number, halves away from 0, and at most 2^29 away."""
    size = min(abs(value), 2.0**29)
    whole = math.floor(size)
    return int(math.copysign(whole + (size - whole >= 0.5), value))


def _bins(first: int, last: int, bins: int, extent: int, like: Tensor) -> list[tuple[int, int]]:
    """First pixel of each bin along an axis, and one past the last, limited to the map; in the precision of `like`."""
    size = like.new_tensor(max(last - first + 1, 1)) / bins
    result = []
    for number in range(bins):
        start, stop = int(torch.floor(number * size)) + first, int(torch.ceil((number + 1) * size)) + first
        result.append((min(max(start, 0), extent), min(max(stop, 0), extent)))
    return result

"""RoIPool as maxima along x, then along y: a few calls for each box, for all channels.

The first of equal values row by row is what two searches for the first find: within each row, and among the rows.
"""

import torch
from torch import Tensor

_FARTHEST = 2.0**29  # corners beyond are moved there, so that sums of them are exact integers


def roi_pool(input: Tensor, rois: Tensor, output_size: tuple[int, int], spatial_scale: float) -> tuple[Tensor, Tensor]:
    """See `kernels.roi_pool`. Pooled features and where on the map each is from, y * W + x or -1."""
    _, channels, height, width = input.shape
    pooled_height, pooled_width = output_size
    # As torchvision has it; in half precision only -inf is below float32's range.
    lowest = torch.finfo(torch.float32).min if input.element_size() > 2 else float("-inf")
    # Channels last, so that a maximum over pixels is one of whole rows of memory.
    maps = input.permute(0, 2, 3, 1)
    pooled = input.new_zeros((rois.shape[0], pooled_height, pooled_width, channels))
    source = torch.full_like(pooled, -1, dtype=torch.int32)
    scaled = rois[:, 1:] * spatial_scale
    usable = torch.isfinite(scaled).all(dim=1) & (rois[:, 0] >= 0) & (rois[:, 0] < input.shape[0])
    x1, y1, x2, y2 = _round(torch.where(usable[:, None], scaled, 0.0)).unbind(1)
    rows, columns = _bins(y1, y2, pooled_height, height), _bins(x1, x2, pooled_width, width)
    for k, (image, use) in enumerate(zip(rois[:, 0].tolist(), usable.tolist(), strict=True)):
        top, bottom = rows[k][0][0], rows[k][-1][1]
        some = [column for column, (left, right) in enumerate(columns[k]) if right > left]
        if not use or bottom <= top or not some:
            continue
        strip = maps[int(image), top:bottom]
        strip = torch.where(strip > lowest, strip, lowest)  # false for NaN
        best = strip.new_empty((bottom - top, len(some), channels))
        x = torch.empty_like(best, dtype=torch.int64)
        for place, column in enumerate(some):
            left, right = columns[k][column]
            torch.max(strip[:, left:right], dim=1, out=(best[:, place], x[:, place]))
            x[:, place] += left
        for row, (first, stop) in enumerate(rows[k]):
            if stop > first:
                value, y = best[first - top : stop - top].max(dim=0)
                pixel = (y + first) * width + x[first - top : stop - top].gather(0, y[None])[0]
                pooled[k, row, some] = value
                source[k, row, some] = torch.where(value > lowest, pixel, -1).to(torch.int32)
    if input.is_contiguous():
        return pooled.permute(0, 3, 1, 2).contiguous(), source.permute(0, 3, 1, 2).contiguous()
    return pooled.permute(0, 3, 1, 2), source.permute(0, 3, 1, 2)


def roi_pool_backward(
    grad: Tensor,
    source: Tensor,
    rois: Tensor,
    input_size: tuple[int, int, int, int],
    channels_last: bool,
    spatial_scale: float,
) -> Tensor:
    """The gradient of the features [N, C, H, W]: each bin's goes to the pixel that it is from, in the order of RoIs."""
    images, channels, height, width = input_size
    compute = torch.promote_types(grad.dtype, torch.float32)
    total = grad.new_zeros((images, height * width, channels), dtype=compute)
    values = grad.permute(0, 2, 3, 1).flatten(1, 2)
    pixels = source.permute(0, 2, 3, 1).flatten(1, 2)
    for image in range(images):
        own = rois[:, 0].long() == image
        at, value = pixels[own].flatten(0, 1).long(), values[own].flatten(0, 1).to(compute)
        total[image].scatter_add_(0, at.clamp(min=0), torch.where(at >= 0, value, 0.0))
    result = total.to(grad.dtype).view(images, height, width, channels).permute(0, 3, 1, 2)
    return result if channels_last else result.contiguous()


def _round(values: Tensor) -> Tensor:
    """To the nearest whole number, halves away from 0."""
    size = values.abs().clamp(max=_FARTHEST)
    whole = size.floor()
    return torch.copysign(whole + (size - whole >= 0.5), values)


def _bins(first: Tensor, last: Tensor, bins: int, extent: int) -> list[list[tuple[int, int]]]:
    """For each box, the first pixel of each bin along an axis and one past the last, limited to the map."""
    start = first.long()
    size = ((last.long() - start + 1).clamp(min=1).to(first.dtype) / bins)[:, None]
    number = torch.arange(bins + 1, dtype=first.dtype, device=first.device)
    low = ((number[:-1] * size).floor().long() + start[:, None]).clamp(0, extent)
    high = ((number[1:] * size).ceil().long() + start[:, None]).clamp(0, extent)
    return [list(zip(*each, strict=True)) for each in zip(low.tolist(), high.tolist(), strict=True)]

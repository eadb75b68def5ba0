"""Polygons to masks from where each edge crosses each column of pixels; see `kernels.gpu.rasterize` for the rule."""

import torch
from torch import Tensor

from kernels.masks import pack_masks

_FAR = 2**28


def rasterize(
    vertices: Tensor, part_offsets: Tensor, instance_offsets: Tensor, height: int, width: int, whole: bool
) -> tuple[Tensor, Tensor]:
    """See `kernels.rasterize.rasterized`; everything is written. Computed on the CPU: not every device has float64."""
    device = vertices.device
    fifths = (5 * vertices.cpu().double() + 0.5).nan_to_num(0.0).clamp(-_FAR, _FAR).to(torch.int64)
    parts, instances = part_offsets.tolist(), instance_offsets.tolist()
    masks = torch.zeros((len(instances) - 1, height, width), dtype=torch.bool, device="cpu")
    extents = torch.zeros((len(instances) - 1, 4), dtype=torch.int32, device="cpu")
    for mask, extent, first, stop in zip(masks, extents, instances, instances[1:], strict=False):
        boxes = []
        for part in range(first, stop):
            corners = fifths[parts[part] : parts[part + 1]]
            if len(corners) == 0:
                continue
            left, top = _pixels(corners.amin(0), width, height)
            right, bottom = _pixels(corners.amax(0), width, height)
            boxes.append([left, top, right, bottom])
            if left < right and top < bottom:
                mask[top:bottom, left:right] |= _part(corners, left, top, right, bottom)
        if boxes:
            every = extent.new_tensor(boxes)
            extent[:] = torch.cat([every[:, :2].amin(0), every[:, 2:].amax(0)])
    return pack_masks(masks).bits.to(device), extents.to(device)


def _pixels(corner: Tensor, width: int, height: int) -> tuple[int, int]:
    """The pixel whose middle fifth lies at this place or is the next one."""
    x, y = ((corner.clamp(min=0) + 2) // 5).tolist()
    return min(x, width), min(y, height)


def _part(corners: Tensor, left: int, top: int, right: int, bottom: int) -> Tensor:
    """The pixels [bottom - top, right - left] of one polygon from its corners [n, 2] in fifths of a pixel."""
    start, end = corners, corners.roll(-1, 0)
    low, high = torch.minimum(start[:, 0], end[:, 0]), torch.maximum(start[:, 0], end[:, 0])
    first = ((low.clamp(min=0) + 2) // 5).clamp(left, right)
    stop = ((high.clamp(min=0) + 2) // 5).clamp(left, right)
    number = stop - first  # of columns that an edge crosses
    edge = torch.repeat_interleave(torch.arange(len(corners), device=corners.device), number)
    column = torch.arange(len(edge), device=corners.device) - (number.cumsum(0) - number)[edge] + first[edge]
    row = (_crossing(start[edge], end[edge], 5 * column + 2).clamp(min=0) + 2) // 5
    width = right - left
    place = (row.clamp(top, bottom) - top) * width + column - left
    turns = torch.bincount(place, minlength=(bottom - top + 1) * width).view(-1, width)
    return turns[:-1].cumsum(0) % 2 == 1


def _crossing(start: Tensor, end: Tensor, u: Tensor) -> Tensor:
    """The smaller v of the two points of the edges' walk between which they pass from u to u + 1."""
    dx, dy = (end - start).abs().unbind(1)
    steep = dx < dy
    along = torch.where(steep, 1, 0)[:, None]
    swap = start.gather(1, along) > end.gather(1, along)
    xs, ys = torch.where(swap, end, start).unbind(1)
    xe, ye = torch.where(swap, start, end).unbind(1)
    rise = torch.where(steep, xe - xs, ye - ys)
    slope = rise.double() / torch.maximum(dx, dy).clamp(min=1)
    # Along x: the height at both points. Along y: the last step before x changes.
    step = u - xs
    v = torch.minimum(_walk(ys, slope, step), _walk(ys, slope, step + 1))
    sign = torch.where(slope < 0, -1, 1)
    limit = torch.where(slope < 0, -(u + 1), u)
    guess = (((u - xs).double() + 0.5) / torch.where(slope == 0, 1.0, slope)).to(torch.int64)
    later, same = (sign * _walk(xs, slope, guess + offset) <= limit for offset in (1, 0))
    last = torch.where(later, guess + 1, torch.where(same, guess, guess - 1))
    return torch.where(steep, ys + last, v)


def _walk(origin: Tensor, slope: Tensor, step: Tensor) -> Tensor:
    """Where a walk stands across its direction after some steps, rounded as the COCO API rounds."""
    return (origin + slope * step + 0.5).to(torch.int64)

"""Masks of a box pasted into the image, by the two rules in use."""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad


def paste_masks(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float | None, rule: str
) -> Tensor:
    """See `kernels.paste_masks`. masks: [N, M, M], boxes: [N, 4]; [N, H, W]."""
    compute = torch.promote_types(masks.dtype, torch.float32)
    if rule == "torchvision":  # which cuts boxes to integers in their own precision
        paste, boxes = _paste_by_integer_box, boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    else:
        paste, boxes = _paste_by_pixel_centers, boxes.to(compute)
    pasted = masks.new_zeros((masks.shape[0], *image_size), dtype=compute)
    for image, mask, box in zip(pasted, masks.to(compute), boxes, strict=True):
        if (box.abs() < 1e15).all():  # not NaN, not infinite, and nothing overflows
            image.copy_(paste(mask, box, image_size))
    if threshold is None:
        return pasted
    return pasted > threshold if rule == "torchvision" else pasted >= threshold


def _paste_by_integer_box(mask: Tensor, box: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Pads the mask and its box by a mask pixel, truncates the box to whole pixels and resizes the mask to it."""
    size = mask.shape[0]
    center, half = (box[:2] + box[2:]) * 0.5, (box[2:] - box[:2]) * 0.5 * ((size + 2) / size)
    left, top, right, bottom = torch.cat([center - half, center + half]).long().tolist()
    width, height = max(right - left + 1, 1), max(bottom - top + 1, 1)
    resized = interpolate(pad(mask, (1, 1, 1, 1))[None, None], (height, width), mode="bilinear", align_corners=False)
    image = mask.new_zeros(image_size)
    y1, y2 = max(top, 0), min(bottom + 1, image_size[0])
    x1, x2 = max(left, 0), min(right + 1, image_size[1])
    if y1 < y2 and x1 < x2:
        image[y1:y2, x1:x2] = resized[0, 0, y1 - top : y2 - top, x1 - left : x2 - left]
    return image


def _paste_by_pixel_centers(mask: Tensor, box: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Samples the mask at the centre of each pixel of the image, zero outside the box."""
    left, top, right, bottom = box
    y = (torch.arange(image_size[0], dtype=box.dtype, device=box.device) + 0.5 - top) / (bottom - top) * 2 - 1
    x = (torch.arange(image_size[1], dtype=box.dtype, device=box.device) + 0.5 - left) / (right - left) * 2 - 1
    if not (torch.isfinite(y).all() and torch.isfinite(x).all()):
        return mask.new_zeros(image_size)  # a box without area
    grid = torch.stack([x.expand(image_size), y[:, None].expand(image_size)], dim=2)
    return grid_sample(mask[None, None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0, 0]

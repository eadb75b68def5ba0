"""Anchors (Faster R-CNN, section 3.1.1): one size a level, some ratios, centred on each pixel of the level."""

import torch
from torch import Tensor


def level_anchors(
    feature_size: tuple[int, int],
    stride: tuple[int, int],
    size: float,
    ratios: tuple[float, ...],
    device: torch.device,
) -> Tensor:
    """Anchors of one level.

    Args:
        feature_size: height and width of the level.
        stride: input pixels per feature pixel, vertically and horizontally.
        size: square root of the area, in input pixels.
        ratios: height over width.
        device: where the anchors are made.

    Returns:
        [height * width * ratios, 4] as x1, y1, x2, y2, the ratio changing fastest; corners relative to the centre
        are whole pixels, as in torchvision.
    """
    root = torch.tensor(ratios, device=device).sqrt()
    heights, widths = root * size, (1.0 / root) * size
    cell = (torch.stack([-widths, -heights, widths, heights], dim=1) / 2).round()
    y = torch.arange(feature_size[0], device=device, dtype=torch.float32) * stride[0]
    x = torch.arange(feature_size[1], device=device, dtype=torch.float32) * stride[1]
    y, x = torch.meshgrid(y, x, indexing="ij")
    centers = torch.stack([x, y, x, y], dim=2)
    return (centers[:, :, None] + cell).view(-1, 4)


def pyramid_anchors(
    features: list[Tensor], input_size: tuple[int, int], sizes: tuple[int, ...], ratios: tuple[float, ...]
) -> list[Tensor]:
    """Anchors of each level, for features [N, C, H_l, W_l] of an input of `input_size` (height, width)."""
    result = []
    for feature, size in zip(features, sizes, strict=True):
        height, width = feature.shape[-2:]
        stride = (input_size[0] // height, input_size[1] // width)
        result.append(level_anchors((height, width), stride, size, ratios, feature.device))
    return result

"""Masks and boxes for the tests of run-length encoding, and what pycocotools makes of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from kernels import paste_masks
from kernels.paste_masks import Rule

IMAGE = (37, 45)
NAN, INF = float("nan"), float("inf")
# Inside, across borders and corners, outside, as high as the image and reaching its last column or not, as wide, larger
# than it, smaller than a pixel, on whole pixels, without area, not finite.
BOXES = torch.tensor(
    [
        [3.3, 4.1, 20.7, 30.2],
        [-10.3, -5, 12.4, 9.9],
        [30, 20, 60, 60],
        [100, 100, 120, 130],
        [10, -3, 20, 60],
        [0, -5, 45, 40],
        [20, -5, 70, 40],
        [-40, 10, 90, 20],
        [-20, -30, 90, 70],
        [11.2, 12.1, 11.6, 12.9],
        [5, 6, 19, 20],
        [7, 9, 7, 30],
        [NAN, 1, 2, 3],
        [1, -INF, 20, 30],
    ]
)


def _noise(number: int) -> Tensor:
    return torch.rand((number, 14, 14), generator=torch.Generator().manual_seed(0))


def _full(number: int) -> Tensor:
    return torch.ones((number, 14, 14))


def _stripes(number: int) -> Tensor:
    """Inside in every other row: many runs a column, and runs that go on from column to column."""
    masks = torch.zeros((number, 14, 14))
    masks[:, ::2] = 1
    return masks


SHAPES: dict[str, Callable[[int], Tensor]] = {"noise": _noise, "full": _full, "stripes": _stripes}


def encoded(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float, rule: Rule
) -> list[dict[str, Any]]:
    """pycocotools on the pasted masks."""
    pasted = paste_masks(masks, boxes, image_size, threshold, rule)
    return [coco_mask.encode(np.asfortranarray(each.cpu().numpy(), dtype=np.uint8)) for each in pasted]

"""RoIs for `kernels.gpu.roi_neighbours` to put in order, and the order that they must get."""

import torch
from torch import Tensor
from torchvision.ops.poolers import LevelMapper

from kernels.gpu.roi_geometry import level_tables
from kernels.gpu.roi_neighbours import order_rois

IMAGES, HEIGHT, WIDTH = 3, 800, 1344
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
NAN, INF = float("nan"), float("inf")


def rois(number: int) -> Tensor:
    """RoIs [number, 5] of all sizes and images, on the image and off it; every sixth must give zeros."""
    generator = torch.Generator().manual_seed(number)
    middle, size = torch.rand((2, number, 2), generator=generator)
    middle = middle * torch.tensor([WIDTH + 200, HEIGHT + 200]) - 100
    size = 8 * torch.exp(size * 4)
    image = torch.randint(0, IMAGES, (number, 1), generator=generator)
    found = torch.cat([image, middle - size / 2, middle + size / 2], 1)
    bad = [(0, NAN), (0, -1), (0, IMAGES), (1, NAN), (2, -INF), (3, INF), (4, NAN), (0, INF)]
    for row, (column, value) in zip(range(5, number, 6), bad * number, strict=False):
        found[row, column] = value
    return found


def order_of(rois: Tensor) -> Tensor:
    """What the kernel makes of them [K]."""
    tables = level_tables([(IMAGES, 1, HEIGHT >> i, WIDTH >> i) for i in range(2, 6)], SCALES, 224.0, 4, rois.dtype)
    return order_rois(rois, tables, {"POOLED_H": 7, "POOLED_W": 7, "RATIO": 2}, False)[0]


def check_order(rois: Tensor, order: Tensor) -> None:
    """A permutation whatever the RoIs are; those that give anything by level, image and place, then index."""
    assert torch.equal(order.sort().values, torch.arange(len(rois), dtype=torch.int32))
    usable = torch.isfinite(rois).all(1) & (rois[:, 0] >= 0) & (rois[:, 0] < IMAGES)
    seen = [index for index in order.tolist() if usable[index]]
    level = LevelMapper(2, 5)([torch.where(usable[:, None], rois[:, 1:], 1.0)])
    keys = {
        index: (int(level[index]), int(rois[index, 0]), _along_curve(rois[index], int(level[index]))) for index in seen
    }
    assert seen == sorted(seen, key=lambda index: (*keys[index], index))
    if len(seen) > 500:
        assert _steps(rois[seen]) < 0.4 * _steps(rois[sorted(seen, key=lambda index: (*keys[index][:2], index))])


def _along_curve(roi: Tensor, level: int) -> int:
    """Morton code of the middle in cells of 4 pixels of the level's map: bits of y and x in turn."""
    x, y = ((roi[1:3] + roi[3:5]) / 2 * SCALES[level] / 4).clamp(0, 1023).int().tolist()
    bits = "".join(of_y + of_x for of_y, of_x in zip(f"{y:010b}", f"{x:010b}", strict=True))
    return int(bits, 2)


def _steps(rois: Tensor) -> float:
    """How far middles of neighbours lie apart, on average."""
    middle = (rois[:, 1:3] + rois[:, 3:5]) / 2
    return float((middle[1:] - middle[:-1]).norm(dim=1).mean())

"""Polygons to masks by walking their boundary, as the COCO API does (rleFrPoly in its maskApi.c)."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from kernels.masks import pack_masks

Point = tuple[int, int]


def rasterize(
    vertices: Tensor, part_offsets: Tensor, instance_offsets: Tensor, height: int, width: int, whole: bool
) -> tuple[Tensor, Tensor]:
    """See `kernels.rasterize.rasterized`; everything is written. Computed on the CPU."""
    instances, parts = instance_offsets.tolist(), part_offsets.tolist()
    masks = torch.zeros((len(instances) - 1, height, width), dtype=torch.bool, device="cpu")
    extents = torch.zeros((len(instances) - 1, 4), dtype=torch.int32, device="cpu")
    for mask, extent, first, stop in zip(masks, extents, instances, instances[1:], strict=False):
        for part in range(first, stop):
            mask |= _part(vertices[parts[part] : parts[part + 1]].double().tolist(), height, width)
        rows, columns = (torch.nonzero(mask.any(dim))[:, 0].tolist() for dim in (1, 0))
        if rows:
            extent[:] = extent.new_tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return pack_masks(masks).bits.to(vertices.device), extents.to(vertices.device)


def _part(vertices: list[list[float]], height: int, width: int) -> Tensor:
    """[height, width] of one polygon."""
    boundary = _boundary([(int(5 * x + 0.5), int(5 * y + 0.5)) for x, y in vertices])
    turns = torch.zeros((height + 1, width), dtype=torch.int64, device="cpu")
    for (u, v), (next_u, next_v) in pairwise(boundary):
        x = (min(u, next_u) - 2) // 5
        # Between the middle fifth of a pixel and the next, the boundary crosses the pixel's column.
        if u != next_u and min(u, next_u) % 5 == 2 and 0 <= x < width:
            y = math.ceil(min(max((min(v, next_v) + 0.5) / 5 - 0.5, 0), height))
            turns[y, x] += 1
    return turns.cumsum(0)[:height] % 2 == 1


def _boundary(corners: list[Point]) -> list[Point]:
    """Points in fifths of a pixel along the edges, a step of one in the longer direction from each to the next."""
    points = []
    for start, end in zip(corners, [*corners[1:], *corners[:1]], strict=True):
        along = 0 if abs(end[0] - start[0]) >= abs(end[1] - start[1]) else 1
        (low, low_across), (high, high_across) = sorted((p[along], p[1 - along]) for p in (start, end))
        steps = high - low
        slope = (high_across - low_across) / steps if steps else 0.0
        edge = [(low + t, int(low_across + slope * t + 0.5)) for t in range(steps + 1)]
        if start[along] > end[along]:
            edge.reverse()
        points += [p if along == 0 else (p[1], p[0]) for p in edge]
    return points

"""Counts that have no limit lie along a grid's first axis: the others end at 65,535 programs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels
from bench.virtual_gpu import Options
from bench.virtual_gpu.intercept import active

pytestmark = pytest.mark.compiled


def segmented_nms(items: int) -> Any:
    return kernels.segmented_nms(boxes(items)[:, None].repeat(1, 70, 1), torch.rand(items, 70), 0.5, 2)


def decode_boxes(items: int) -> Any:
    anchors = boxes(20 * items)[None]
    return kernels.decode_boxes(anchors, anchors, torch.rand(1, 20 * items), torch.tensor([[32, 32]]))


def decode_segments(items: int) -> Any:
    segments = boxes(items)[None, :, None]
    return kernels.decode_boxes(segments, segments, torch.rand(1, items, 1), torch.tensor([[32, 32]]))


def decode_keypoints(items: int) -> Any:
    return kernels.decode_keypoints(torch.rand(items, 3, 8, 8), boxes(items))


def paste_masks(items: int) -> Any:
    return kernels.paste_masks(torch.rand(items, 4, 4), boxes(items), (40, 50))


def mask_runs(items: int) -> Any:
    return kernels.mask_runs(torch.rand(items, 4, 4), boxes(items), (40, 50))


def roi_align(items: int) -> Any:
    features = torch.rand((1, 8, 16, 16), requires_grad=True)
    rois = torch.cat([torch.zeros(items, 1), boxes(items)], dim=1)
    return kernels.roi_align(features, rois, 3, 1.0, 2).sum().backward()


def roi_pool(items: int) -> Any:
    features = torch.rand((1, 8, 16, 16), requires_grad=True)
    rois = torch.cat([torch.zeros(items, 1), boxes(items)], dim=1)
    return kernels.roi_pool(features, rois, 3, 1.0).sum().backward()


def mask_loss(items: int) -> Any:
    logits = torch.rand((items, 2, 8, 8), requires_grad=True)
    labels = torch.ones(items, dtype=torch.int64)
    return kernels.mask_loss(
        logits, labels, boxes(items), torch.ones(1, 32, 32, dtype=torch.bool), 0 * labels
    ).backward()


def match_boxes(items: int) -> Any:
    return kernels.match_boxes(boxes(20 * items), boxes(3)[None], torch.tensor([3]))


def boxes(items: int) -> Tensor:
    return torch.tensor([2.0, 3.0, 14.0, 15.0]).repeat(items, 1)


@pytest.mark.parametrize(
    "compute",
    [
        *[segmented_nms, decode_boxes, decode_segments, decode_keypoints, paste_masks, mask_runs],
        *[roi_align, roi_pool, mask_loss, match_boxes],
    ],
)
def test_items_lie_along_the_first_axis(compute: Callable[[int], Any]) -> None:
    grids = []
    for items in (2, 35):
        with kernels.use("triton"), active(options=Options(caches=False)) as record:
            compute(items)
        grids.append([launch.launch.grid for launch in record.launches])
    few, many = grids
    assert max(grid[0] for grid in many) > max(grid[0] for grid in few)
    assert {grid[1:] for grid in many} <= {grid[1:] for grid in few}

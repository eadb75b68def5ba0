"""The keypoint kernel, compiled and run on the virtual GPU."""

import pytest
import torch
from heatmaps_to_decode import (
    BOXES,
    check,
    check_odd_values,
    check_outer_weight,
    check_precision,
    check_unusable_boxes,
    some_heatmaps,
)

import kernels
from bench.virtual_gpu.intercept import active

pytestmark = pytest.mark.compiled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_decode_keypoints(dtype: torch.dtype) -> None:
    with kernels.use("triton"), active() as record:
        check(some_heatmaps(56, 56, dtype=dtype), BOXES)
    (launch,) = record.launches
    assert launch.kernel == "_keypoint_kernel"
    assert launch.counters.atomic_requests == 0


@pytest.mark.parametrize("number", range(5))
def test_every_configuration(number: int) -> None:
    with kernels.use("triton"), active(choose=lambda _, configs: configs[number]):
        check(some_heatmaps(keypoints=1), BOXES)
        check_odd_values()


def test_outer_weights_do_not_cancel() -> None:
    with kernels.use("triton"), active():
        check_outer_weight()


def test_positions_are_not_rounded() -> None:
    with kernels.use("triton"), active():
        check_precision()


def test_unusable_boxes_give_zeros() -> None:
    with kernels.use("triton"), active():
        check_unusable_boxes()

"""The keypoint kernel, interpreted, against torchvision's loop over boxes."""

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

from kernels import decode_keypoints

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_keypoints_are_torchvisions(dtype: torch.dtype) -> None:
    check(some_heatmaps(dtype=dtype), BOXES)


def test_other_sizes() -> None:
    check(some_heatmaps(5, 23, keypoints=1), BOXES)


def test_more_columns_than_a_block_has() -> None:
    check(some_heatmaps(6, 7, keypoints=2)[:1], torch.tensor([[1.5, 2, 301.2, 9]]))


def test_equal_values_and_values_that_are_not_finite() -> None:
    check_odd_values()


def test_outer_weights_do_not_cancel() -> None:
    check_outer_weight()


def test_positions_are_not_rounded() -> None:
    check_precision()


def test_unusable_boxes_give_zeros() -> None:
    check_unusable_boxes()


def test_a_view() -> None:
    heatmaps = some_heatmaps().transpose(2, 3)
    seen = decode_keypoints(heatmaps, BOXES)
    assert all(torch.equal(a, b) for a, b in zip(seen, decode_keypoints(heatmaps.contiguous(), BOXES), strict=True))


def test_channels_last() -> None:
    heatmaps = some_heatmaps()
    last = heatmaps.contiguous(memory_format=torch.channels_last)
    assert heatmaps.shape[1] > 1
    assert not last.is_contiguous()
    seen = decode_keypoints(last, BOXES)
    assert all(torch.equal(a, b) for a, b in zip(seen, decode_keypoints(heatmaps, BOXES), strict=True))


def test_empty() -> None:
    keypoints, scores = decode_keypoints(torch.zeros(0, 3, 8, 8), torch.zeros(0, 4))
    assert (keypoints.shape, scores.shape) == ((0, 3, 3), (0, 3))

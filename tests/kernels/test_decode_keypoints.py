"""Keypoints of heatmaps, eager and reference, against torchvision's loop over boxes."""

from typing import Any

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

from kernels import decode_keypoints, use
from kernels.dispatch import Implementation

IMPLEMENTATIONS: list[Implementation] = ["eager", "reference"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(14, 14), (56, 56), (9, 23)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_keypoints_are_torchvisions(implementation: Implementation, size: tuple[int, int], dtype: torch.dtype) -> None:
    heatmaps = some_heatmaps(*size, dtype=dtype)
    with use(implementation):
        check(heatmaps, BOXES)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equal_values_and_values_that_are_not_finite(implementation: Implementation) -> None:
    with use(implementation):
        check_odd_values()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_outer_weights_do_not_cancel(implementation: Implementation) -> None:
    with use(implementation):
        check_outer_weight()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_positions_are_not_rounded(implementation: Implementation) -> None:
    with use(implementation):
        check_precision()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_unusable_boxes_give_zeros(implementation: Implementation) -> None:
    with use(implementation):
        check_unusable_boxes()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_box_of_the_heatmaps_size_has_the_keypoint_in_the_middle_of_its_pixel(implementation: Implementation) -> None:
    heatmaps = torch.zeros(1, 2, 5, 7)
    heatmaps[0, 0, 3, 6], heatmaps[0, 1, 0, 2] = 2.5, 1.5
    with use(implementation):
        keypoints, scores = decode_keypoints(heatmaps, torch.tensor([[10.0, 20, 17, 25]]))
    assert keypoints.tolist() == [[[16.5, 23.5, 1], [12.5, 20.5, 1]]]
    assert scores.tolist() == [[2.5, 1.5]]


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8)])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_empty(implementation: Implementation, shape: tuple[int, ...]) -> None:
    with use(implementation):
        keypoints, scores = decode_keypoints(torch.zeros(shape), torch.ones(shape[0], 4))
    assert (keypoints.shape, scores.shape) == ((*shape[:2], 3), shape[:2])


def test_no_gradient() -> None:
    assert not any(each.requires_grad for each in decode_keypoints(some_heatmaps().requires_grad_(), BOXES))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heatmaps": torch.zeros(2, 8, 8)}, r"heatmaps is \(2, 8, 8\)"),
        ({"heatmaps": torch.zeros(2, 3, 0, 8)}, r"heatmaps is \(2, 3, 0, 8\)"),
        ({"heatmaps": torch.zeros(2, 3, 8, 8, dtype=torch.int64)}, "heatmaps is .* torch.int64"),
        ({"boxes": torch.zeros(3, 4)}, r"boxes is \(3, 4\)"),
        ({"boxes": torch.zeros(2, 5)}, r"boxes is \(2, 5\)"),
        ({"boxes": torch.zeros(2, 4, dtype=torch.int64)}, "boxes is .* torch.int64"),
        ({"boxes": torch.zeros(2, 4, device="meta")}, "boxes is on meta"),
    ],
)
def test_wrong_arguments(changed: dict[str, Any], message: str) -> None:
    arguments = {"heatmaps": torch.zeros(2, 3, 8, 8), "boxes": torch.zeros(2, 4), **changed}
    with use("eager"), pytest.raises(ValueError, match=message):
        decode_keypoints(**arguments)

"""RoIPool, eager and reference, against torchvision and by hand: maxima and where they are found are exact."""

from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from rois_to_pool import check, features, rois
from torch import Tensor

from kernels import roi_pool, use
from kernels.dispatch import Implementation

IMPLEMENTATIONS: list[Implementation] = ["eager", "reference"]
FORMATS = [torch.contiguous_format, torch.channels_last]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_as_torchvision(implementation: Implementation, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    with use(implementation):
        check(features(dtype, memory_format), rois(9), (3, 4), 0.25)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1 / 16, 1 / 4, 0.3, 1.0]), size=st.sampled_from([1, 2, 7]))
def test_eager_on_any_boxes(seed: int, scale: float, size: int) -> None:
    with use("eager"):
        check(features(seed=seed), rois(6, seed=seed), (size, size), scale)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_by_hand(implementation: Implementation) -> None:
    """Corners belong to the box, halves go away from 0, overlapping bins share a pixel, ties go to the first."""
    feature = torch.tensor([[[[1.0, 2, 9], [5, 5, 3], [4, 9, 9]]]], requires_grad=True)
    with use(implementation):
        pooled = roi_pool(feature, torch.tensor([[0.0, 0.5, -0.5, 1.5, 1.5]]), 2)
        # From (1, -1) to (2, 2), 2 x 4 pixels.
        assert pooled.tolist() == [[[[2.0, 9], [9, 9]]]]
        whole = roi_pool(feature, [torch.tensor([[0.0, 0, 2, 2]])], 2)
        assert whole.tolist() == [[[[5.0, 9], [9, 9]]]]
        (grad,) = torch.autograd.grad(whole, feature, torch.tensor([[[[1.0, 2], [4, 8]]]]))
    assert grad.tolist() == [[[[0, 0, 2], [1, 0, 0], [0, 12, 0]]]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_features_that_are_no_numbers(implementation: Implementation) -> None:
    feature = torch.tensor([[[[NAN, 1, NAN], [-INF, NAN, NAN], [INF, 2, NAN]]]], requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 0, 2, 0], [0, 2, 0, 2, 2], [0, 0, 1, 0, 1], [0, 0, 2, 1, 2]])
    with use(implementation):
        pooled = roi_pool(feature, boxes, 1).flatten()
    assert torch.equal(pooled, torchvision.ops.roi_pool(feature, boxes, 1).flatten())
    (grad,) = torch.autograd.grad(pooled, feature, torch.ones(4))
    assert grad.tolist() == [[[[0, 1, 0], [0, 0, 0], [1, 0, 0]]]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_boxes_that_are_not_finite_give_zeros(implementation: Implementation) -> None:
    boxes = torch.tensor(
        [[0, NAN, 1, 9, 9], [0, 1, 1, INF, 9], [0, 1, -INF, 9, 9], [0, 3e38, 1, 3e38, 9], [NAN, 1, 1, 9, 9]]
    )
    with use(implementation):
        assert not roi_pool(features().requires_grad_(), boxes, 2, 4.0).any()


def test_far_corners() -> None:
    boxes = torch.tensor([[0, -1e30, -1e30, 1e30, 1e30], [0, 5, 5, 1e20, 1e9], [1, -1e10, -1e9, 4, 5]])
    results = []
    for implementation in IMPLEMENTATIONS:
        with use(implementation):
            results.append(roi_pool(features(), boxes, 3))
    assert torch.equal(*results)
    assert results[0].any()


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_boxes(implementation: Implementation, images: int) -> None:
    feature = features()[:images].requires_grad_()
    with use(implementation):
        pooled = roi_pool(feature, torch.zeros(0, 5), (3, 4))
        (grad,) = torch.autograd.grad(pooled, feature, torch.zeros_like(pooled))
    assert pooled.shape == (0, 5, 3, 4)
    assert grad.shape == feature.shape
    assert not grad.any()


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradcheck(implementation: Implementation, memory_format: torch.memory_format) -> None:
    # All different, so that a small step changes no maximum.
    order = torch.randperm(2 * 5 * 11 * 14, generator=torch.Generator().manual_seed(0))
    feature = order.view(2, 5, 11, 14).double().contiguous(memory_format=memory_format)[:, :2, :5, :6]
    with use(implementation):
        assert torch.autograd.gradcheck(lambda x: roi_pool(x, rois(4).double(), 2, 0.25), feature.requires_grad_())


def test_features_in_neither_format_are_taken_as_channels_last() -> None:
    strided: Tensor = features()[:, ::2, :, 1:]
    with use("eager"):
        pooled = roi_pool(strided, rois(4), 2, 0.25)
        same = roi_pool(strided.contiguous(memory_format=torch.channels_last), rois(4), 2, 0.25)
    assert torch.equal(pooled, same)
    assert pooled.stride() == same.stride()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input": torch.zeros(5, 11, 14)}, r"input is \(5, 11, 14\)"),
        ({"input": torch.zeros(2, 5, 0, 14)}, r"input is \(2, 5, 0, 14\)"),
        ({"input": torch.zeros(2, 5, 11, 14, dtype=torch.uint8)}, "input is .* torch.uint8"),
        (
            {"input": torch.zeros(()).expand(2, 5, 2**16, 2**15)},
            r"input is \(2, 5, 65536, 32768\); .* fewer than 2\^31",
        ),
        ({"boxes": torch.zeros(3, 4)}, r"boxes is \(3, 4\) .* must be K x 5"),
        ({"boxes": [torch.zeros(3, 4)]}, "boxes is a list of 1; it must be a list of 2"),
        ({"boxes": [torch.zeros(3, 4), torch.zeros(3, 5)]}, r"boxes\[1\] is \(3, 5\) .* must be K x 4"),
        ({"boxes": torch.zeros(3, 5, dtype=torch.int64)}, "boxes is .* torch.int64"),
        ({"boxes": torch.zeros(3, 5, device="meta")}, "boxes is on meta"),
        ({"boxes": torch.tensor([[2.0, 0, 0, 1, 1]])}, r"boxes\[:, 0\] holds 2.0; it must be from 0 to 1"),
        ({"boxes": torch.tensor([[-1.0, 0, 0, 1, 1]])}, r"boxes\[:, 0\] holds -1.0"),
        ({"output_size": (3, 0)}, r"output_size is \(3, 0\)"),
        ({"output_size": (3, 3, 3)}, r"output_size is \(3, 3, 3\)"),
        ({"spatial_scale": 0.0}, "spatial_scale is 0.0"),
        ({"spatial_scale": NAN}, "spatial_scale is nan"),
    ],
)
def test_wrong_arguments(changed: dict[str, Any], message: str) -> None:
    arguments = {"input": features(), "boxes": rois(3), "output_size": 2, "spatial_scale": 0.25}
    with use("eager"), pytest.raises(ValueError, match=message):
        roi_pool(**{**arguments, **changed})

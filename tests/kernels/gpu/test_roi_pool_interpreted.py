"""The RoIPool kernels, interpreted, against torchvision: maxima and where they are found are exact."""

import pytest
import torch
from rois_to_pool import check, features, rois

from kernels import roi_pool, use

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

FORMATS = [torch.contiguous_format, torch.channels_last]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_as_torchvision(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    check(features(dtype, memory_format), rois(9), (3, 4), 0.25)


@pytest.mark.parametrize(("scale", "size"), [(1 / 16, 1), (0.3, 2), (1.0, 7)])
def test_scales_and_sizes(scale: float, size: int) -> None:
    check(features(), rois(6, seed=1), (size, size), scale)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("channels", [1, 31, 130])
def test_around_the_size_of_a_block(channels: int, memory_format: torch.memory_format) -> None:
    check(features(torch.float32, memory_format, channels), rois(3), (2, 2), 0.25)


def test_what_is_not_finite_or_far() -> None:
    feature = features()
    feature[0, 0, :4], feature[0, 1, 2:5], feature[0, 2] = NAN, -INF, INF
    boxes = torch.tensor(
        [[0, NAN, 1, 9, 9], [0, 1, 1, INF, 9], [0, 3, 1, 3, 9], [0, -1e30, -1e30, 1e30, 1e30], [1, -1e10, -1e9, 4, 5]]
    )
    results = []
    for implementation in ("triton", "reference"):
        with use(implementation):  # type: ignore[arg-type]
            leaf = feature.clone().requires_grad_()
            pooled = roi_pool(leaf, boxes, 3)
            results.append([pooled, *torch.autograd.grad(pooled, leaf, torch.ones_like(pooled))])
    for ours, true in zip(*results, strict=True):
        assert torch.equal(ours, true)


@pytest.mark.parametrize("images", [0, 2])
def test_no_boxes(images: int) -> None:
    feature = features()[:images].requires_grad_()
    pooled = roi_pool(feature, torch.zeros(0, 5), (3, 4))
    (grad,) = torch.autograd.grad(pooled, feature, torch.zeros_like(pooled))
    assert pooled.shape == (0, 5, 3, 4)
    assert grad.shape == feature.shape
    assert not grad.any()


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_gradcheck(memory_format: torch.memory_format) -> None:
    order = torch.randperm(2 * 2 * 5 * 6, generator=torch.Generator().manual_seed(0))
    feature = order.view(2, 2, 5, 6).double().contiguous(memory_format=memory_format).requires_grad_()
    boxes = rois(3).double()
    assert torch.autograd.gradcheck(lambda x: roi_pool(x, boxes, 2, 0.25), feature, fast_mode=True)

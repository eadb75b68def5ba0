"""RoIAlign of one feature map, eager and reference, against torchvision in float64."""

from typing import Any

import pytest
import torch
import torchvision
from error_rule import assert_error_rule
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import multiscale_roi_align, roi_align, roi_pool, use
from kernels.dispatch import Implementation
from kernels.reference.roi_align import roi_align as reference_roi_align
from kernels.reference.roi_align import roi_align_backward as reference_roi_align_backward

IMPLEMENTATIONS: list[Implementation] = ["eager", "reference"]
FORMATS = [torch.contiguous_format, torch.channels_last]
NAN, INF = float("nan"), float("inf")
SCALE = 0.25

# Image index and box in an image of 60 x 48 pixels, on a map of 15 x 12.
ROIS: dict[str, list[list[float]]] = {
    "inside": [[0, 10.3, 5.2, 30.1, 33.7], [1, 1.7, 2.2, 21.4, 12.9], [1, 30.5, 10.0, 50.3, 41.0], [0, 1, 2, 4, 46]],
    "one": [[1, 10.3, 5.2, 30.1, 33.7]],
    "none": [],
    "across the border": [[1, -20.0, -10.0, 12.0, 30.0], [0, 40.2, 30.1, 90.3, 80.2], [0, -5, -5, 65, 53]],
    "far outside": [[0, -900, -900, -700, -700], [1, 900, 20, 950, 40], [1, 10, -3e3, 20, -2e3]],
    "degenerate": [[0, 7.3, 9.1, 7.3, 9.1], [1, 20.2, 20.3, 21.1, 20.9], [0, 8.1, 3.3, 8.1, 30.7], [1, 30, 30, 10, 9]],
    "mixed": [[1, 20.1, 3.3, 22.2, 44.4], [0, 300, 0.0, 310, 9], [0, 5.5, 5.5, 5.5, 5.5], [1, 3.1, 7.7, 40.2, 9.3]],
}


def make(
    kind: str = "inside",
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    channels: int = 5,
    size: tuple[int, int] = (3, 2),
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, RoIs and a gradient of the pooled features."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((2, channels, 12, 15), generator=generator).to(dtype).contiguous(memory_format=memory_format)
    rois = torch.tensor(ROIS[kind], dtype=torch.promote_types(dtype, torch.float32)).reshape(-1, 5)
    return features, rois, torch.randn((len(rois), channels, *size), generator=generator).to(dtype)


def ours(features: Tensor, rois: Any, grad: Tensor, implementation: Implementation, **options: Any) -> list[Tensor]:
    """Pooled features and the gradient of `features`."""
    leaf = features.detach().requires_grad_()
    with use(implementation):
        result = roi_align(leaf, rois, tuple(grad.shape[2:]), SCALE, **options)
    return [result.detach(), *torch.autograd.grad(result, leaf, grad)]


def torchvisions(
    features: Tensor, rois: Tensor, grad: Tensor, precision: torch.dtype, **options: Any
) -> tuple[Tensor, Tensor]:
    leaf = features.detach().to(precision).contiguous().requires_grad_()
    result = torchvision.ops.roi_align(leaf, rois.to(precision), tuple(grad.shape[2:]), SCALE, **options)
    return result.detach(), torch.autograd.grad(result, leaf, grad.to(precision))[0]


def check(features: Tensor, rois: Tensor, grad: Tensor, implementation: Implementation, **options: Any) -> None:
    results = ours(features, rois, grad, implementation, **options)
    truths = torchvisions(features, rois, grad, torch.float64, **options)
    plains = torchvisions(features, rois, grad, torch.float32, **options)
    for result, truth, plain in zip(results, truths, plains, strict=True):
        assert result.dtype == features.dtype
        assert_error_rule(result, truth, plain.to(features.dtype), features.dtype)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ROIS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_error_rule(
    implementation: Implementation, kind: str, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    for ratio, aligned in ((2, False), (-1, False), (-1, True)):
        check(*make(kind, dtype, memory_format), implementation, sampling_ratio=ratio, aligned=aligned)


@pytest.mark.parametrize(("ratio", "aligned"), [(2, False), (-1, False), (-1, True)])
def test_error_rule_in_float64(ratio: int, aligned: bool) -> None:
    """What the rule doubles is the reference's error, so there must be many numbers: all boxes together."""
    features, _, _ = make(dtype=torch.float64, channels=33)
    rois = torch.tensor([roi for kind in ROIS.values() for roi in kind], dtype=torch.float64)
    grad = torch.randn((len(rois), 33, 3, 2), generator=torch.Generator().manual_seed(1)).double()
    arguments = ([SCALE], (3, 2), ratio, aligned, 224.0, 4)
    plains = (
        reference_roi_align([features], rois, *arguments),
        *reference_roi_align_backward(grad, rois, [(2, 33, 12, 15)], False, *arguments),
    )
    results = ours(features, rois, grad, "eager", sampling_ratio=ratio, aligned=aligned)
    truths = torchvisions(features, rois, grad, torch.float64, sampling_ratio=ratio, aligned=aligned)
    for result, truth, plain in zip(results, truths, plains, strict=True):
        assert_error_rule(result, truth, plain, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_numbers_without_rounding_are_torchvisions(implementation: Implementation, dtype: torch.dtype) -> None:
    """Small integers at positions on a grid of 1/16: every precision is exact."""
    features = (torch.arange(2 * 3 * 12 * 15) * 7 % 16).view(2, 3, 12, 15).to(dtype)
    rois = torch.tensor([[0, 8, 4, 24, 36], [1, -8, 16, 24, 32], [0, 40, 20, 72, 52], [1, 0, 0, 60, 48.0]])
    rois = rois.to(torch.promote_types(dtype, torch.float32))
    grad = torch.ones((4, 3, 2, 2), dtype=dtype)
    for options in ({"sampling_ratio": 1}, {"sampling_ratio": 1, "aligned": True}):
        truths = torchvisions(features, rois, grad, torch.float64, **options)
        for result, truth in zip(ours(features, rois, grad, implementation, **options), truths, strict=True):
            assert torch.equal(result, truth.to(dtype))


@pytest.mark.parametrize("channels", [1, 33])
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_number_of_channels(channels: int, memory_format: torch.memory_format) -> None:
    check(*make("mixed", torch.float32, memory_format, channels), "eager")


@pytest.mark.parametrize(
    ("size", "options"),
    [((1, 1), {"sampling_ratio": 1}), ((7, 5), {"sampling_ratio": 6}), ((2, 9), {"sampling_ratio": 0})],
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_size_and_sampling(implementation: Implementation, size: tuple[int, int], options: dict[str, Any]) -> None:
    check(*make("mixed", size=size), implementation, **options)
    check(*make("mixed", size=size), implementation, aligned=True, **options)


coordinate = st.floats(-80, 140, width=16)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 1), *[coordinate] * 4), max_size=6), st.integers(-1, 3), st.booleans())
def test_any_boxes(boxes: list[tuple[float, ...]], sampling_ratio: int, aligned: bool) -> None:
    """Coordinates are halves of pixels and more, moved off the places where the sampling jumps to zero."""
    features, *_ = make()
    rois = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)
    if aligned and sampling_ratio < 1:  # torchvision fails on a negative number of samples
        rois[:, 1:] = torch.stack([rois[:, 1:3], rois[:, 3:]]).sort(dim=0).values.permute(1, 0, 2).flatten(1)
    rois[:, 1:] += torch.tensor([0.0137, 0.0291, 0.0173, 0.0319])
    grad = torch.randn((len(boxes), 5, 3, 2), generator=torch.Generator().manual_seed(1))
    check(features, rois, grad, "eager", sampling_ratio=sampling_ratio, aligned=aligned)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_drop_in(implementation: Implementation) -> None:
    """torchvision's defaults, its list of boxes an image, and one number for the size."""
    features, rois, _ = make("mixed")
    lists = [rois[rois[:, 0] == image, 1:] for image in (0, 1)]
    in_order = torch.cat([rois[rois[:, 0] == image] for image in (0, 1)])
    with use(implementation):
        result = roi_align(features, lists, 3)
        assert torch.equal(result, roi_align(features, in_order, (3, 3)))
        assert roi_align(features, [lists[0][:0]] * 2, 3).shape == (0, 5, 3, 3)
    truth = torchvision.ops.roi_align(features.double(), [x.double() for x in lists], 3)
    assert_error_rule(result, truth, torchvision.ops.roi_align(features, lists, 3), torch.float32)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_memory_format_is_the_inputs(implementation: Implementation, memory_format: torch.memory_format) -> None:
    features, rois, grad = make(memory_format=memory_format)
    for result in ours(features, rois, grad, implementation):
        assert result.is_contiguous(memory_format=memory_format)
    other = next(each for each in FORMATS if each != memory_format)
    check(features[:, :, ::2, ::2], rois, grad, implementation)  # neither of the two
    for a, b in zip(
        ours(features, rois, grad, implementation),
        ours(features.contiguous(memory_format=other), rois, grad, implementation),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradient_of_any_strides(implementation: Implementation, memory_format: torch.memory_format) -> None:
    features, rois, grad = make("mixed", memory_format=memory_format)
    reversed_strides = torch.empty((2, 3, 10, 4)).permute(3, 2, 1, 0)[:, ::2].copy_(grad)
    one = grad[:1, :1, :1, :1].expand_as(grad)
    for strided in (reversed_strides, one, grad.contiguous(memory_format=torch.channels_last)):
        check(features, rois, strided, implementation)
    if implementation == "eager":  # which promises the same bits
        assert torch.equal(ours(features, rois, one, "eager")[1], ours(features, rois, one.contiguous(), "eager")[1])


@pytest.mark.parametrize("sampling_ratio", [2, -1])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_boxes_that_are_not_finite_give_zeros(implementation: Implementation, sampling_ratio: int) -> None:
    features, good, grad = make()
    bad = torch.tensor(
        [
            [0, NAN, 1, 20, 20],
            [1, 1, 1, INF, 20],
            [0, -INF, 1, INF, 20],
            [NAN, 1, 1, 20, 20],
            [0, 1, -3e38, 9, 3e38],
        ]
    )
    rois = torch.cat([bad, good])
    grads = torch.cat([torch.full((5, *grad.shape[1:]), NAN), grad])  # the gradient of a zero is not read
    result, grad_features = ours(features, rois, grads, implementation, sampling_ratio=sampling_ratio)
    expected, grad_expected = ours(features, good, grad, implementation, sampling_ratio=sampling_ratio)
    assert not result[:5].any()
    assert torch.equal(result[5:], expected)
    assert torch.equal(grad_features, grad_expected)


def test_enormous_boxes_take_only_the_samples_on_the_map() -> None:
    """Adaptive sampling asks for 1e22 of them here; where torchvision can still follow, the results are its own."""
    features, _, grad = make()
    enormous = torch.tensor([[0, -1e12, -1e12, 1e12, 1e12], [1, -1e30, 0, 1e30, 20], [0, 1e6, 1e6, 1e9, 1e9]])
    for result in ours(features, enormous, grad[:3], "eager"):
        assert torch.isfinite(result).all()
    large = torch.tensor([[0, -300.3, -200.2, 900.1, 700.4], [1, 33.3, 22.2, 2000.1, 900.8], [1, -1500, -9, 31, 44]])
    check(features, large, grad[:3], "eager")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_permuted_rois_give_permuted_results(implementation: Implementation) -> None:
    features, rois, grad = make("mixed")
    order = torch.tensor([2, 0, 3, 1])
    result = ours(features, rois, grad, implementation)[0]
    assert torch.equal(ours(features, rois[order], grad[order], implementation)[0], result[order])


def test_the_gradient_is_the_same_bits_at_each_run() -> None:
    features, rois, _ = make("mixed")
    rois = rois.repeat(20, 1)
    grad = torch.randn((80, 5, 3, 2), generator=torch.Generator().manual_seed(2))
    assert torch.equal(ours(features, rois, grad, "eager")[1], ours(features, rois, grad, "eager")[1])


@pytest.mark.parametrize("pool", [roi_align, roi_pool, lambda x, *rest: multiscale_roi_align([x], *rest, [1.0])])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_images_and_no_channels(implementation: Implementation, pool: Any) -> None:
    rois = torch.tensor([[0.0, 1, 1, 3, 3]] * 3)
    with use(implementation):
        for shape, boxes, number in (((0, 3, 4, 5), [], 0), ((0, 3, 4, 5), rois[:0], 0), ((2, 0, 4, 5), rois, 3)):
            features = torch.zeros(shape, requires_grad=True)
            pooled = pool(features, boxes, (2, 3))
            assert pooled.shape == (number, shape[1], 2, 3)
            pooled.sum().backward()
            assert features.grad is not None
            assert features.grad.shape == shape


@pytest.mark.parametrize("pool", [roi_align, roi_pool])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_images_that_half_precision_does_not_count_to(pool: Any, dtype: torch.dtype) -> None:
    """2049 is no number in float16, nor 257 in bfloat16."""
    values = torch.arange(2050.0)
    boxes = [torch.zeros(0, 4, dtype=dtype)] * 2050
    for image in (257, 2049):
        boxes[image] = torch.tensor([[0.0, 0, 4, 4]], dtype=dtype)
    with use("eager"):
        pooled = pool(values.view(-1, 1, 1, 1).expand(-1, 1, 4, 4), boxes, 1)
    assert pooled.flatten().tolist() == [257, 2049]


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradcheck(implementation: Implementation, memory_format: torch.memory_format) -> None:
    features = torch.randn((2, 2, 4, 5), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = features.contiguous(memory_format=memory_format).requires_grad_()
    rois = torch.tensor([[0, 1.3, 2.1, 9.2, 7.4], [1, 3.0, -4.0, 30.0, 20.0]], dtype=torch.float64)
    with use(implementation):
        assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, 2, SCALE), features, fast_mode=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input": torch.zeros(3, 4, 4)}, r"input is \(3, 4, 4\)"),
        ({"input": torch.zeros(1, 3, 0, 4)}, r"input is \(1, 3, 0, 4\)"),
        ({"input": torch.zeros(1, 3, 4, 4, dtype=torch.int64)}, "input is .* torch.int64"),
        ({"boxes": torch.zeros(2, 4)}, r"boxes is \(2, 4\)"),
        ({"boxes": torch.zeros(2, 5, dtype=torch.int64)}, "boxes is .* torch.int64"),
        ({"boxes": torch.zeros(2, 5, device="meta")}, "boxes is on meta"),
        ({"boxes": [torch.zeros(2, 4)] * 2}, "boxes is a list of 2"),
        ({"boxes": [torch.zeros(2, 5)]}, r"boxes\[0\] is \(2, 5\)"),
        ({"boxes": torch.tensor([[1.0, 0, 0, 4, 4]])}, r"boxes\[:, 0\] holds 1.0; it must be from 0 to 0"),
        ({"boxes": torch.tensor([[-1.0, 0, 0, 4, 4]])}, r"boxes\[:, 0\] holds -1.0"),
        ({"output_size": 0}, r"output_size is \[0, 0\]"),
        ({"output_size": (1, 2, 3)}, "output_size is"),
        ({"spatial_scale": 0.0}, "spatial_scale is 0"),
    ],
)
def test_wrong_arguments(changed: dict[str, Any], message: str) -> None:
    arguments = {"input": torch.zeros(1, 3, 4, 4), "boxes": torch.zeros(2, 5), "output_size": 2, **changed}
    with use("eager"), pytest.raises(ValueError, match=message):
        roi_align(**arguments)

"""RoIAlign over a feature pyramid, eager and reference, against torchvision's MultiScaleRoIAlign."""

from typing import Any

import pytest
import torch
from error_rule import assert_error_rule
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from kernels import multiscale_roi_align, use
from kernels.dispatch import Implementation

IMPLEMENTATIONS: list[Implementation] = ["eager", "reference"]
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
HEIGHT, WIDTH = 128, 160
# A canonical size of 56 pixels spreads the boxes below over four levels.
CANONICAL_SCALE, CANONICAL_LEVEL = 56, 4
BOXES = [
    torch.tensor([[3.3, 5.1, 14.2, 19.7], [20.1, 9.3, 60.4, 45.2], [1.2, 2.3, 155.1, 120.2], [-40, -30, 25.3, 31.1]]),
    torch.tensor([[70.2, 30.1, 150.3, 90.6], [500, 500, 590, 590], [30.5, 30.5, 30.5, 30.5], [9.1, 3.2, 31.0, 101.7]]),
]


def pyramid(dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 6, int(HEIGHT * scale), int(WIDTH * scale)) for scale in SCALES]
    return [
        torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=memory_format) for shape in shapes
    ]


def torchvisions(
    features: list[Tensor], boxes: list[Tensor], grad: Tensor, precision: torch.dtype, sampling_ratio: int
) -> list[Tensor]:
    leaves = [each.to(precision).contiguous().requires_grad_() for each in features]
    pooler = MultiScaleRoIAlign(
        [str(level) for level in range(len(leaves))],
        list(grad.shape[2:]),
        sampling_ratio,
        canonical_scale=CANONICAL_SCALE,
        canonical_level=CANONICAL_LEVEL,
    )
    named = {str(level): each for level, each in enumerate(leaves)}
    result = pooler(named, [each.to(precision) for each in boxes], [(HEIGHT, WIDTH)] * 2)
    return [result.detach(), *torch.autograd.grad(result, leaves, grad.to(precision))]


def ours(
    features: list[Tensor], boxes: list[Tensor], grad: Tensor, sampling_ratio: int, implementation: Implementation
) -> list[Tensor]:
    leaves = [each.detach().requires_grad_() for each in features]
    with use(implementation):
        result = multiscale_roi_align(
            leaves,
            boxes,
            tuple(grad.shape[2:]),
            SCALES,
            sampling_ratio,
            canonical_scale=CANONICAL_SCALE,
            canonical_level=CANONICAL_LEVEL,
        )
    return [result.detach(), *torch.autograd.grad(result, leaves, grad)]


@pytest.mark.parametrize("sampling_ratio", [2, -1])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_error_rule(
    implementation: Implementation, dtype: torch.dtype, memory_format: torch.memory_format, sampling_ratio: int
) -> None:
    features = pyramid(dtype, memory_format)
    grad = torch.randn((8, 6, 3, 2), generator=torch.Generator().manual_seed(1)).to(dtype)
    results = ours(features, BOXES, grad, sampling_ratio, implementation)
    truths = torchvisions(features, BOXES, grad, torch.float64, sampling_ratio)
    plains = torchvisions(features, BOXES, grad, torch.float32, sampling_ratio)
    assert all(grad_level.any() for grad_level in truths[1:]), "every level has a box"
    for result, truth, plain in zip(results, truths, plains, strict=True):
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=memory_format)
        assert_error_rule(result, truth, plain.to(dtype), dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_boxes(implementation: Implementation) -> None:
    boxes = [torch.zeros(0, 4)] * 2
    result, *grads = ours(pyramid(torch.float32), boxes, torch.zeros(0, 6, 3, 2), 2, implementation)
    assert result.shape == (0, 6, 3, 2)
    assert [grad.shape for grad in grads] == [each.shape for each in pyramid(torch.float32)]
    assert not any(grad.any() for grad in grads)


def levels(boxes: Tensor, implementation: Implementation, **options: Any) -> Tensor:
    """Which level each box is pooled from: level l of the pyramid holds l + 1 everywhere."""
    features = [torch.full((1, 1, 256 >> level, 256 >> level), level + 1.0) for level in range(4)]
    with use(implementation):
        pooled = multiscale_roi_align(features, [boxes], 1, SCALES, 1, **options)
    return pooled.flatten().round().long() - 1


def ulps(value: float, count: int) -> Tensor:
    """`value` and the float32 numbers next to it, on both sides."""
    return (torch.tensor(value).view(torch.int32) + torch.arange(-count, count + 1, dtype=torch.int32)).view(
        torch.float32
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_levels_at_their_borders(implementation: Implementation) -> None:
    """Squares of 112, 224 and 448 pixels, which begin a level, and oblongs of the same area, and their neighbours."""
    sides = torch.cat([ulps(side, 12) for side in (112.0, 224.0, 448.0)])
    wide = torch.cat([ulps(side, 12) for side in (56.0, 112.0, 896.0)])
    high = torch.tensor([224.0, 448.0, 224.0]).repeat_interleave(25)
    extents = torch.cat([torch.stack([sides, sides], 1), torch.stack([wide, high], 1)])
    boxes = torch.cat([torch.zeros_like(extents), extents], 1)
    expected = LevelMapper(2, 5)([boxes])
    assert torch.equal(levels(boxes, implementation), expected)
    exact = torch.tensor([[0.0, 0, side, side] for side in (112.0, 224.0, 448.0)])
    assert levels(exact, implementation).tolist() == [1, 2, 3]
    assert expected.unique().tolist() == [0, 1, 2, 3]


def test_levels_of_random_boxes() -> None:
    generator = torch.Generator().manual_seed(0)
    extents = torch.exp(torch.rand((300, 2), generator=generator) * 8 - 1)
    boxes = torch.cat([torch.zeros_like(extents), extents], 1)
    for scale, level in ((224, 4), (100, 3), (56, 4)):
        expected = LevelMapper(2, 5, scale, level)([boxes])
        assert torch.equal(levels(boxes, "eager", canonical_scale=scale, canonical_level=level), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_boxes_without_a_level_give_zeros(implementation: Implementation) -> None:
    """A negative area has no level; torchvision's result is zero too. Both sides negative make a positive area."""
    boxes = torch.tensor([[30.0, 5, 10, 25], [float("nan"), 1, 2, 3], [1, 1, float("inf"), 9], [30, 30, 10, 10]])
    assert levels(boxes, implementation).tolist() == [-1, -1, -1, 0]


def test_permuted_rois_give_permuted_results() -> None:
    features = pyramid(torch.float32)
    rois = torch.cat([torch.cat([torch.full((4, 1), float(image)), BOXES[image]], 1) for image in (0, 1)])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    with use("eager"):
        pooled = multiscale_roi_align(features, rois, 3, SCALES)
        assert torch.equal(multiscale_roi_align(features, rois[order], 3, SCALES), pooled[order])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradcheck(implementation: Implementation) -> None:
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn((1, 2, 8 >> i, 8 >> i), dtype=torch.float64, generator=generator).requires_grad_() for i in (0, 1)
    ]
    rois = torch.tensor([[0, 1.3, 2.1, 15.2, 17.4], [0, 3.0, -4.0, 61.0, 50.0]], dtype=torch.float64)
    with use(implementation):
        assert torch.autograd.gradcheck(
            lambda *x: multiscale_roi_align(x, rois, 2, SCALES[:2], canonical_scale=30, canonical_level=3),
            features,
            fast_mode=True,
        )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": []}, "features is .* must be a list of one"),
        ({"spatial_scales": [0.25]}, r"spatial_scales is \[0.25\]; it must be 2 finite numbers"),
        ({"spatial_scales": [0.25, 0.0625]}, "spatial_scales is .* each half of the one before"),
        ({"spatial_scales": [0.125, 0.25]}, "spatial_scales is .* each half of the one before"),
        ({"spatial_scales": [0.3, 0.15]}, "spatial_scales is .* powers of two"),
        ({"features": [torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 4, 4)]}, r"features\[1\] is \(1, 2, 4, 4\)"),
        ({"features": [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 4, 4).double()]}, r"features\[1\] .* torch.float64"),
        ({"features": [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 4, 4, device="meta")]}, r"features\[1\] is on meta"),
    ],
)
def test_wrong_arguments(changed: dict[str, Any], message: str) -> None:
    features = [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 4, 4)]
    arguments = {"features": features, "boxes": torch.zeros(2, 5), "spatial_scales": [0.25, 0.125], **changed}
    with use("eager"), pytest.raises(ValueError, match=message):
        multiscale_roi_align(output_size=2, **arguments)

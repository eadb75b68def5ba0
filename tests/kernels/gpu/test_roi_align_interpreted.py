"""The RoIAlign kernels, interpreted, against torchvision in float64."""

from typing import Any

import pytest
import torch
from error_rule import assert_error_rule
from rois_to_align import ROIS, Case
from torch import Tensor
from torchvision.ops.poolers import LevelMapper

from kernels.gpu import roi_align_backward as backward_module
from kernels.gpu import roi_gather, roi_shares
from kernels.gpu.roi_align import roi_align, roi_align_backward
from kernels.gpu.roi_geometry import minimum_areas

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_torchvision(dtype: torch.dtype, channels_last: bool) -> None:
    Case(dtype, channels_last).check()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"sampling_ratio": -1},
        {"sampling_ratio": -1, "aligned": True},
        {"sampling_ratio": 2, "aligned": True},
        {"sampling_ratio": 1, "output_size": (1, 1)},
        {"sampling_ratio": 3, "scales": (0.3,)},
        {"sampling_ratio": 6},
        {"output_size": (7, 5), "channels": 33, "rois": ROIS[:3]},
        {"output_size": (9, 2)},  # more rows of bins, and more samples a row, than RoIs are taken together for
        {"output_size": (2, 17)},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_kind_of_sampling(options: dict[str, Any], channels_last: bool) -> None:
    Case(channels_last=channels_last, **options).check()


@pytest.mark.parametrize("sampling_ratio", [2, 3, 4, 5])
@pytest.mark.parametrize("start", [-13.0, -16.0, -31.0, 1.0])
def test_bins_with_samples_on_both_sides_of_the_border(start: float, sampling_ratio: int) -> None:
    """Samples off the map, before and after those on it, share no pixel with them. Positions are exact here."""
    for step in (7.0, 2.75):
        stop = start + step / 0.25 * sampling_ratio
        rois = torch.tensor([[0, start, start, stop, stop]])
        Case(rois=rois, channels=16, output_size=(1, 1), sampling_ratio=sampling_ratio).check()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_levels_of_a_pyramid(sampling_ratio: int, channels_last: bool) -> None:
    Case(channels_last=channels_last, scales=(0.25, 0.125, 0.0625), sampling_ratio=sampling_ratio).check()


def test_more_channels_than_a_block() -> None:
    Case(rois=ROIS[[0, 2, 5]], channels=130, output_size=(2, 2)).check()


def test_more_rois_than_are_tested_at_a_time() -> None:
    rois = ROIS[[0, 1, 2, 5]].repeat(9, 1)
    rois[:, 1:] += torch.arange(36)[:, None] * 0.37
    Case(rois=rois, channels=2, output_size=(1, 1), sampling_ratio=1).check()


@pytest.mark.parametrize("channels_last", [True, False])
def test_boxes_that_run_backwards(channels_last: bool) -> None:
    """Aligned boxes keep a negative size: samples run from right to left; with adaptive sampling there are none."""
    rois = torch.tensor([[0, 30.0, 25.0, 10.0, 5.0], [1, 8.0, 30.0, 25.0, 10.0]])
    Case(rois=rois, aligned=True, channels_last=channels_last).check()
    case = Case(rois=rois, aligned=True, channels_last=channels_last, sampling_ratio=-1)
    assert not roi_align(case.features, case.rois, *case.arguments).any()


@pytest.mark.parametrize("scales", [(0.25,), (0.25, 0.125)])
@pytest.mark.parametrize("sampling_ratio", [2, -1])
@pytest.mark.parametrize("channels_last", [True, False])
def test_unusable_boxes_give_zeros(channels_last: bool, sampling_ratio: int, scales: tuple[float, ...]) -> None:
    nan, inf = float("nan"), float("inf")
    rois = torch.tensor(
        [
            [0, nan, 1, 20, 20],
            [0, 1, 1, inf, 20],
            [0, -inf, 1, 20, inf],
            [2, 1, 1, 20, 20],
            [-1, 1, 1, 20, 20],
            [nan, 1, 1, 20, 20],
            [0, -3e38, -3e38, 3e38, 3e38],
            [1, 4.0, 5.0, 24.0, 29.0],
        ]
    )
    case = Case(rois=rois, channels_last=channels_last, sampling_ratio=sampling_ratio, scales=scales)
    result = roi_align(case.features, case.rois, *case.arguments)
    assert not result[:7].any()
    assert result[7].any()
    grad = case.grad.clone()
    grad[:7] = nan  # a gradient that must not be read
    truth = case.torchvision(torch.float64)[1]
    grads = roi_align_backward(grad, case.rois, case.shapes, channels_last, *case.arguments)
    for ours, true, plain in zip(grads, truth, case.plain()[1], strict=True):
        assert_error_rule(ours, true, plain, torch.float32)


def test_enormous_boxes_end() -> None:
    """Adaptive sampling would take 1e12 samples a bin; only those on the map are visited."""
    rois = torch.tensor([[0, -1e12, -1e12, 1e12, 1e12], [0, 1e6, 1e6, 1e9, 1e9]])
    for channels_last in (True, False):
        case = Case(rois=rois, channels_last=channels_last, sampling_ratio=-1)
        assert torch.isfinite(roi_align(case.features, case.rois, *case.arguments)).all()
        for grad in roi_align_backward(case.grad, case.rois, case.shapes, channels_last, *case.arguments):
            assert torch.isfinite(grad).all()


@pytest.mark.parametrize("channels_last", [True, False])
def test_no_boxes(channels_last: bool) -> None:
    case = Case(rois=ROIS[:0], channels_last=channels_last)
    assert roi_align(case.features, case.rois, *case.arguments).shape == (0, 5, 3, 2)
    (grad,) = roi_align_backward(case.grad, case.rois, case.shapes, channels_last, *case.arguments)
    assert grad.shape == case.shapes[0]
    assert not grad.any()


def test_gradient_of_any_strides() -> None:
    case = Case(channels_last=False, rois=ROIS[:4])
    grad = torch.empty((2, 3, 5, 8)).permute(3, 2, 1, 0)[::2].copy_(case.grad)
    assert not grad.is_contiguous()
    expected = roi_align_backward(case.grad, case.rois, case.shapes, False, *case.arguments)
    strided = roi_align_backward(grad, case.rois, case.shapes, False, *case.arguments)
    assert torch.equal(strided[0], expected[0])
    one = case.grad[:1, :1, :1, :1].expand_as(case.grad)
    expected = roi_align_backward(one.contiguous(), case.rois, case.shapes, False, *case.arguments)
    assert torch.equal(roi_align_backward(one, case.rois, case.shapes, False, *case.arguments)[0], expected[0])


def test_the_gradient_is_the_same_in_both_formats_and_in_any_company() -> None:
    """A pixel's sum is in the order of its RoIs and does not depend on the tile, the format or other images."""
    case = Case(scales=(0.25, 0.125))
    last = roi_align_backward(case.grad, case.rois, case.shapes, True, *case.arguments)
    first = roi_align_backward(case.grad, case.rois, case.shapes, False, *case.arguments)
    alone = case.rois[:, 0] == 1
    some = roi_align_backward(case.grad[alone], case.rois[alone], case.shapes, True, *case.arguments)
    for level in range(2):
        assert torch.equal(last[level], first[level])
        assert torch.equal(last[level][1], some[level][1])


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("work", [None, 200])
def test_the_gradient_is_the_same_in_every_configuration(
    monkeypatch: pytest.MonkeyPatch, work: int | None, channels_last: bool
) -> None:
    """Also where warps share the RoIs of a part."""
    if work is not None:
        monkeypatch.setattr(roi_shares, "WORK", work)
        monkeypatch.setattr(roi_shares, "SHARE", work // 2)
        monkeypatch.setattr(roi_shares, "SLOTS", 30)
    case = Case(rois=ROIS[[0, 1, 2, 5]], channels=64, channels_last=channels_last, output_size=(2, 2))
    expected = roi_align_backward(case.grad, case.rois, case.shapes, channels_last, *case.arguments)
    for config in roi_gather.gather_kernel.configs:
        with monkeypatch.context() as pinned:
            pinned.setattr(roi_gather.gather_kernel, "configs", [config])
            seen = roi_align_backward(case.grad, case.rois, case.shapes, channels_last, *case.arguments)
        assert torch.equal(seen[0], expected[0])


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("dtype", "slots", "aligned"),
    [(torch.float32, 200, True), (torch.bfloat16, 200, False), (torch.float16, 1, True)],
    ids=str,
)
def test_crowded_pixels(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, slots: int, aligned: bool, channels_last: bool
) -> None:
    """Warps share the RoIs of a row, as many as want to or as there are slots for, and nothing is done twice."""
    monkeypatch.setattr(roi_shares, "WORK", 300)
    monkeypatch.setattr(roi_shares, "SHARE", 150)
    monkeypatch.setattr(roi_shares, "SLOTS", slots)
    dealt = []

    def deal_shares(*arguments: Any) -> roi_shares.Shares:
        dealt.append(roi_shares.deal_shares(*arguments))
        return dealt[-1]

    monkeypatch.setattr(backward_module, "deal_shares", deal_shares)
    rois = torch.cat([ROIS[[0, 1, 5]].repeat(5, 1), ROIS[[7, 6]]])
    rois[:, 1:] += torch.arange(17)[:, None] * 0.37
    Case(dtype, channels_last, rois=rois, aligned=aligned).check()
    (shares,) = dealt
    parts = len(shares.todo) - len(shares.slot)
    used = shares.slot[:, 0] >= 0
    rows, number = torch.unique(shares.slot[used, 0], return_counts=True)
    assert used.sum() <= 2 * slots
    for row, share, of in shares.slot[used].tolist():
        assert 0 <= share < of == number[rows == row]
    if slots == 200:
        assert number.min() == 1
        assert number.max() >= 4
    todo = shares.todo[shares.todo >= 0]
    assert torch.equal(todo[todo >= 2 * parts].sort()[0] - 2 * parts, torch.nonzero(used)[:, 0])
    done = torch.cat([todo[todo < 2 * parts] % parts, (rows // 2).unique()])
    assert torch.equal(done.sort()[0], torch.arange(parts))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("work", [300, 8000])
def test_addresses_of_large_maps(monkeypatch: pytest.MonkeyPatch, work: int, channels_last: bool) -> None:
    """Where a map has more values than 32 bits count."""
    monkeypatch.setattr(roi_shares, "WORK", work)
    monkeypatch.setattr(roi_shares, "SHARE", work // 2)
    monkeypatch.setattr(roi_shares, "SLOTS", 20)
    case = Case(channels_last=channels_last, scales=(0.25, 0.125))
    expected = roi_align_backward(case.grad, case.rois, case.shapes, channels_last, *case.arguments)
    monkeypatch.setattr(backward_module, "INT32", 0)
    seen = roi_align_backward(case.grad, case.rois, case.shapes, channels_last, *case.arguments)
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_bins_far_smaller_than_a_pixel_and_far_larger_than_the_map() -> None:
    rois = torch.tensor(
        [[0, 8.0, 8.0, 9.0, 9.0], [0, 8.0, 8.0, 8.1, 40.0], [1, -4e3, -4e3, 4e3, 5e3], [1, 0, -900.0, 60.0, 900.0]]
    )
    for ratio in (2, 5, -1):
        Case(rois=rois, output_size=(9, 11), sampling_ratio=ratio, aligned=True, channels=2).check()


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rois: Tensor, arguments: tuple[Any, ...], *features: Tensor) -> Tensor:
        ctx.rois, ctx.arguments, ctx.shapes = rois, arguments, [tuple(x.shape) for x in features]
        ctx.channels_last = not features[0].is_contiguous()
        return roi_align(list(features), rois, *arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        grads = roi_align_backward(grad, ctx.rois, ctx.shapes, ctx.channels_last, *ctx.arguments)
        return (None, None, *grads)


@pytest.mark.parametrize("channels_last", [True, False])
def test_gradcheck(channels_last: bool) -> None:
    rois = torch.tensor([[0, 1.3, 2.1, 9.2, 7.4], [1, 3.0, -4.0, 30.0, 20.0]], dtype=torch.float64)
    case = Case(
        torch.float64,
        channels_last,
        rois,
        channels=1,
        scales=(0.125, 0.0625),
        output_size=(2, 2),
        sampling_ratio=-1,
    )
    features = [x[:, :, :4, :5].contiguous().requires_grad_() for x in case.features]
    if channels_last:
        features = [
            torch.cat([x.detach(), x.detach()], 1).contiguous(memory_format=torch.channels_last).requires_grad_()
            for x in features
        ]
    assert torch.autograd.gradcheck(
        lambda *x: _RoIAlign.apply(rois, case.arguments, *x), tuple(features), fast_mode=True
    )


@pytest.mark.parametrize("canonical", [(224.0, 4), (56.0, 4), (100.0, 3)])
def test_least_areas_divide_levels_as_torchvision_does(canonical: tuple[float, int]) -> None:
    scales = (0.25, 0.125, 0.0625, 0.03125)
    areas = minimum_areas(scales, *canonical)
    assert list(areas) == sorted(areas)
    mapper = LevelMapper(2, 5, *canonical)
    generator = torch.Generator().manual_seed(0)
    sides = torch.exp(torch.rand(2000, 2, generator=generator) * 8)
    for area in areas:  # squares whose area lies on and around the threshold
        near = torch.full((65,), area).sqrt() * (1 + torch.arange(-32, 33) * 2.0**-23)
        sides = torch.cat([sides, torch.stack([near, near], 1)])
    boxes = torch.cat([torch.zeros_like(sides), sides], 1)
    level = sum((sides[:, 0] * sides[:, 1] >= area).long() for area in areas)
    assert torch.equal(level, mapper([boxes]))

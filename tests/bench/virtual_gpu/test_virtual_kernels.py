"""Whole kernels: ours under `active()` against the eager implementation, torchvision's against its CPU operations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
import triton
from error_rule import assert_error_rule
from torch import Tensor

import kernels
from bench.virtual_gpu import A100, T4, Options, VirtualGpu, torchvision_kernels, unwritten
from bench.virtual_gpu.intercept import Record, active
from kernels.gpu import roi_align_backward, roi_shares, tuning

pytestmark = pytest.mark.compiled

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
SCALES = [1 / 4, 1 / 8, 1 / 16]


def some(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def boxes() -> list[Tensor]:
    """Small, large, beyond the border, a single pixel."""
    first = torch.tensor([[1.0, 2, 60, 50], [10, 20, 100, 90], [-5, -5, 30, 30], [0, 0, 127, 127]])
    return [first, torch.tensor([[3.0, 4, 50, 80], [30, 30, 31, 31]])]


def virtual(function: Callable[[], tuple[Tensor, ...]], **options: Any) -> tuple[tuple[Tensor, ...], Record]:
    with kernels.use("triton"), active(**options) as record:
        return function(), record


def by(implementation: Any, function: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    with kernels.use(implementation):
        return function()


def pooled(dtype: torch.dtype, layout: str, ratio: int = 2, compute: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Pooled features and the gradients of all levels; `compute` for the truth in float64."""
    levels = [
        some(2, 32, 32 >> level, 40 >> level, dtype=dtype, seed=level)
        .to(compute or dtype)
        .contiguous(memory_format=FORMATS[layout])
        .requires_grad_()
        for level in range(3)
    ]
    out = kernels.multiscale_roi_align(
        levels, [each.to(compute) for each in boxes()] if compute else boxes(), 7, SCALES, ratio
    )
    grad = some(*out.shape, dtype=dtype, seed=9).to(out.dtype).contiguous(memory_format=FORMATS[layout])
    out.backward(grad)
    return out.detach(), *[each.grad for each in levels if each.grad is not None]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_multiscale_roi_align(dtype: torch.dtype, layout: str) -> None:
    ours, record = virtual(lambda: pooled(dtype, layout))
    plain = by("eager", lambda: pooled(dtype, layout))
    truth = by("reference", lambda: pooled(dtype, layout, compute=torch.float64))
    assert len(ours) == 4
    for a, b, c in zip(ours, truth, plain, strict=True):
        assert not bool(unwritten(a).any())
        assert_error_rule(a, b, c, dtype)
    names = [launch.kernel for launch in record.launches]
    together = dtype == torch.float32 and layout == "channels last"
    forward = ["_order_kernel", "_neighbours_kernel"] if together else [f"_{layout.replace(' ', '_')}_kernel"]
    backward = ["_window_kernel", "_tile_kernel", "_weights_kernel", "_work_kernel", "_deal_kernel", "gather_kernel"]
    assert names == [*forward, *backward]


@pytest.mark.parametrize("layout", FORMATS)
def test_roi_align_with_adaptive_sampling(layout: str) -> None:
    feature = some(2, 16, 32, 40).contiguous(memory_format=FORMATS[layout])

    def run() -> tuple[Tensor, ...]:
        leaf = feature.clone().requires_grad_()
        out = kernels.roi_align(leaf, boxes(), (7, 5), 0.25, -1, True)
        out.backward(out.detach())
        assert leaf.grad is not None
        return out.detach(), leaf.grad

    ours, _ = virtual(run)
    for seen, wanted in zip(ours, by("eager", run), strict=True):
        assert torch.allclose(seen, wanted, rtol=1e-5, atol=2e-5)
    torchvision_out = torchvision.ops.roi_align(feature, boxes(), (7, 5), 0.25, -1, True)
    assert torch.allclose(ours[0], torchvision_out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", FORMATS)
def test_samples_on_the_border_count_in_both_passes(layout: str) -> None:
    """At the position 50 of 50 columns a sample counts, and the last column gets its weight. A rounding tells."""
    rois = torch.tensor([[0, 30, 0, 110, 3], [0, 23, 0, 131, 3.0]])
    feature = some(1, 4, 4, 50).contiguous(memory_format=FORMATS[layout])

    def run() -> tuple[Tensor, ...]:
        leaf = feature.clone().requires_grad_()
        kernels.roi_align(leaf, rois, 7, 1.0, 2).sum().backward()
        assert leaf.grad is not None
        return (leaf.grad,)

    ((ours,), _), (wanted,) = virtual(run), by("reference", run)
    assert float(wanted[..., -1].sum()) > 1
    assert torch.allclose(ours, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", FORMATS)
def test_gradient_of_crowded_pixels(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small boxes upon one another, whose sums several warps share, some of which run backwards; also with the
    addresses of large maps, and where there are fewer slots than wanted. No order of warps shows.
    """
    generator = torch.Generator().manual_seed(0)
    corners = 40 + torch.rand((50, 4), generator=generator) * 30
    rois = torch.cat([torch.arange(50)[:, None] % 2, corners], 1)
    feature = some(2, 36, 18, 27).contiguous(memory_format=FORMATS[layout])
    grad = some(50, 36, 7, 5)

    monkeypatch.setattr(roi_shares, "WORK", 5000)
    monkeypatch.setattr(roi_shares, "SHARE", 3000)

    def run() -> tuple[Tensor, ...]:
        leaf = feature.clone().requires_grad_()
        kernels.roi_align(leaf, rois, (7, 5), 0.25, 2, True).backward(grad)
        assert leaf.grad is not None
        return (leaf.grad,)

    (ours,), record = virtual(run)
    (turned,), _ = virtual(run, options=Options(reverse=True, quantum=1))
    assert ours.equal(turned)
    (wanted,) = by("eager", run)
    assert torch.allclose(ours, wanted, rtol=1e-5, atol=1e-5)
    summed = record.launches[-1]
    assert summed.kernel == "_sum_kernel"
    assert summed.counters.dram_bytes > 4 * 36 * 2 * 4 * 10  # at least ten shares
    monkeypatch.setattr(roi_align_backward, "INT32", 0)
    assert ours.equal(virtual(run)[0][0])
    monkeypatch.setattr(roi_shares, "SLOTS", 8)
    assert torch.allclose(virtual(run)[0][0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("number", "launched"), [(150, ["_at_once_kernel"]), (300, ["_mask_kernel", "_reduce_kernel"])]
)
def test_segmented_nms(number: int, launched: list[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand((3, number, 4), generator=generator) * 50
    corners[..., 2:] += corners[..., :2]
    scores = torch.rand((3, number), generator=generator)
    ours, record = virtual(lambda: kernels.segmented_nms(corners, scores, 0.5, 60))
    for seen, wanted in zip(ours, by("eager", lambda: kernels.segmented_nms(corners, scores, 0.5, 60)), strict=True):
        assert seen.equal(wanted)
    kept = torchvision.ops.nms(corners[0], scores[0], 0.5)[:60]
    assert ours[0][0, : len(kept)].equal(kept)
    assert [launch.kernel for launch in record.launches] == launched
    operations = {operation.name for operation in record.operations} - {"detach_"}  # which moves nothing
    assert {"sort", "gather"} <= operations if number == 300 else not operations


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mask_loss(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand((6, 4), generator=generator) * 30
    corners[:, 2:] += corners[:, :2] + 3
    labels, index = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([0, 1, 2, 3, 0, 1])
    masks = torch.rand((4, 64, 64), generator=generator) > 0.5

    def run() -> tuple[Tensor, ...]:
        logits = some(6, 5, 14, 14, dtype=dtype).requires_grad_()
        loss = kernels.mask_loss(logits, labels, corners, masks, index)
        loss.backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        return loss.detach(), logits.grad

    ours, _ = virtual(run)
    wanted = by("eager", run)
    assert torch.allclose(ours[0], wanted[0], rtol=1e-6)
    assert torch.allclose(ours[1].float(), wanted[1].float(), rtol=2 * torch.finfo(dtype).eps, atol=1e-8)
    assert not bool(unwritten(ours[1]).any())


@pytest.mark.parametrize("rule", ["torchvision", "centers"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_paste_masks(dtype: torch.dtype, rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand((5, 4), generator=generator) * 40 - 5
    corners[:, 2:] += corners[:, :2] + 3
    masks = torch.rand((5, 28, 28), generator=generator).to(dtype)
    for threshold in (0.5, None):

        def run(threshold: float | None = threshold) -> tuple[Tensor, ...]:
            return (kernels.paste_masks(masks, corners, (48, 50), threshold, rule),)

        (ours,), _ = virtual(run)
        (wanted,) = by("eager", run)
        if threshold is None:
            assert torch.allclose(ours, wanted, atol=1e-5)
        else:
            assert ours.equal(wanted)
            assert not bool(unwritten(ours).any())


@pytest.mark.parametrize("device", [A100, T4, VirtualGpu(name="B200", architecture=100)], ids=lambda each: each.name)
def test_other_architectures(device: VirtualGpu) -> None:
    dtype = torch.float16  # the T4 has no bfloat16
    ours, _ = virtual(lambda: pooled(dtype, "channels last"), device=device)
    wanted = by("eager", lambda: pooled(dtype, "channels last"))
    assert all(torch.allclose(a.float(), b.float(), rtol=4e-3, atol=4e-3) for a, b in zip(ours, wanted, strict=True))


def test_every_order_and_rounding_gives_the_same_bits() -> None:
    """Our kernels divide exactly and use no atomics: neither the order of warps nor approximations may show."""
    first = None
    for options in (Options(), Options(reverse=True, quantum=1), Options(rounding="low"), Options(rounding="high")):
        ours, _ = virtual(lambda: pooled(torch.float32, "contiguous"), options=options)
        first = first or ours
        assert all(a.equal(b) for a, b in zip(ours, first, strict=True)), options


def test_every_configuration() -> None:
    """`choose` picks; the result is the same but for rounding."""
    number = 0

    def choose(name: str, configs: list[triton.Config]) -> triton.Config:
        nonlocal number
        number = max(number, len(configs))
        return configs[-1]

    ours, record = virtual(lambda: pooled(torch.float32, "contiguous"), choose=choose)
    wanted = by("eager", lambda: pooled(torch.float32, "contiguous"))
    assert number > 1
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(ours, wanted, strict=True))
    chosen = record.launches[0].config
    assert chosen is not None
    assert record.launches[0].launch.threads[0] == 32 * chosen.num_warps


def test_the_record_and_the_patch() -> None:
    launch = tuning.launch
    feature = some(1, 32, 16, 16, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    _, record = virtual(lambda: (kernels.roi_align(feature, [boxes()[0]], 7, 0.25, 2),))
    assert tuning.launch is launch
    (ours,) = record.launches
    assert ours.launch.grid == (4, 1, 1)
    assert ours.resources.registers > 0
    assert ours.resources.local == ours.resources.stack == 0
    assert ours.roofline.seconds > 0
    assert ours.kernel in record.summary()
    assert record.counters == ours.counters
    assert record.seconds >= ours.roofline.seconds
    with pytest.raises(RuntimeError, match="inside"), active():
        raise RuntimeError("inside")
    assert tuning.launch is launch


@pytest.fixture
def rois() -> Tensor:
    return torch.cat([torch.cat([torch.full((len(each), 1), float(i)), each], 1) for i, each in enumerate(boxes())])


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [2, -1])
def test_torchvision_roi_align(rois: Tensor, ratio: int, aligned: bool) -> None:
    feature = some(2, 8, 32, 40).requires_grad_()
    wanted = torchvision.ops.roi_align(feature, rois, (7, 5), 0.25, ratio, aligned)
    out, launch = torchvision_kernels.roi_align_forward(feature.detach(), rois, (7, 5), 0.25, ratio, aligned)
    launch.check()
    assert torch.allclose(out, wanted, rtol=1e-5, atol=1e-5)
    grad = some(*wanted.shape, seed=1)
    wanted.backward(grad)
    assert feature.grad is not None
    out, launch = torchvision_kernels.roi_align_backward(grad, rois, (2, 8, 32, 40), 0.25, ratio, aligned)
    launch.check()
    assert torch.allclose(out, feature.grad, rtol=1e-5, atol=1e-5)
    assert launch.counters.atomic_requests > 0


def test_torchvision_nms() -> None:
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand((300, 4), generator=generator) * 60
    corners[:, 2:] += corners[:, :2]
    order = torch.rand(300, generator=generator).argsort(descending=True)
    mask, launch = torchvision_kernels.nms_mask(corners[order].contiguous(), 0.5)
    launch.check()
    kept = order[torchvision_kernels.keep_of_mask(mask)]
    scores = torch.empty(300)
    scores[order] = torch.arange(300, 0, -1).float()
    assert kept.equal(torchvision.ops.nms(corners, scores, 0.5))
    assert launch.counters.barriers == 5 * 6 // 2  # tiles on and above the diagonal
    with pytest.raises(KeyError):
        torchvision_kernels.load_kernel("no_such_kernel")

"""Each kind of fault, put into a copy of a kernel of ours, is found by a check that `bench verify` makes.

The checks: what the virtual GPU reports, results that nobody wrote, and the error rule. The same inputs pass with the
copy as it is. Which check finds a fault matters too: an access out of bounds whose result is right, and a wrong result
without an access out of bounds, each need their own.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import triton
import triton.language as tl
from error_rule import assert_error_rule
from seeded import seeded
from torch import Tensor

import kernels
from bench.virtual_gpu import VirtualGpuError, triton_kernels, unwritten
from bench.virtual_gpu.intercept import active
from kernels.gpu import tuning

pytestmark = pytest.mark.compiled

FORMATS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
# The file with the form of RoIAlign that features of a dtype take, channels last.
FORMS = {torch.bfloat16: "roi_align", torch.float32: "roi_neighbours"}
# In an image of 60 x 48 pixels; the last reaches the lower right corner of the last image.
ROIS = torch.tensor([[0, 10.3, 5.2, 30.1, 33.7], [1, -20, -10, 12, 30], [0, 8.1, 3.3, 8.1, 30.7], [1, 30, 20, 75, 60]])


def features(layout: str = "channels last", width: int = 15, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((2, 5, 12, width), generator=generator).to(dtype).contiguous(memory_format=FORMATS[layout])


def verify(feature: Tensor, rois: Tensor = ROIS) -> None:
    """RoIAlign on the virtual GPU; VirtualGpuError or AssertionError if a check finds something."""
    with kernels.use("triton"), active():
        ours = kernels.roi_align(feature, rois, (3, 2), 0.25, 2)
    assert not bool(unwritten(ours).any()), "unwritten"
    truth, plain = (
        torchvision.ops.roi_align(feature.to(compute).contiguous(), rois.to(compute), (3, 2), 0.25, 2)
        for compute in (torch.float64, torch.float32)
    )
    assert_error_rule(ours, truth, plain.to(feature.dtype), feature.dtype)


@pytest.mark.parametrize("dtype", FORMS, ids=str)
@pytest.mark.parametrize("layout", FORMATS)
def test_a_copy_is_sound(layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    with seeded(tmp_path, "roi_align"):
        verify(features(layout, dtype=dtype))


@pytest.mark.parametrize("dtype", FORMS, ids=str)
def test_an_index_past_the_end(dtype: torch.dtype, tmp_path: Path) -> None:
    """The column right of the map has weight 0: every result is right, and yet the last row's is past the end."""
    pixel = {torch.bfloat16: "missing", torch.float32: "column + 1"}[dtype]
    old = f"pixel = tl.minimum({pixel}, columns.to(tl.int32) - 1)"
    with seeded(tmp_path, "roi_align", FORMS[dtype], old, f"pixel = {pixel}"):
        verify(features(dtype=dtype), ROIS[:3])
        with pytest.raises(VirtualGpuError, match=r"global memory out of bounds: .*ld\.global"):
            verify(features(dtype=dtype))


def test_a_missing_mask(tmp_path: Path) -> None:
    """5 channels in a block of 8: the last RoI's are stored past the end, all others' over the next RoI's."""
    with (
        seeded(tmp_path, "roi_align", "roi_align", "mask=inside & (channel < CHANNELS),", "mask=inside,"),
        pytest.raises(VirtualGpuError, match=r"global memory out of bounds: .*st\.global"),
    ):
        verify(features("contiguous"))


@pytest.mark.parametrize("dtype", FORMS, ids=str)
def test_a_mask_that_leaves_something_out(dtype: torch.dtype, tmp_path: Path) -> None:
    mask = {torch.bfloat16: "used = ({})", torch.float32: "inside = (rank < num_rois) & ({})"}[dtype]
    old, new = mask.format("row < POOLED_H"), mask.format("row < POOLED_H - 1")
    with (
        seeded(tmp_path, "roi_align", FORMS[dtype], old, new),
        pytest.raises(AssertionError, match="unwritten"),
    ):
        verify(features(dtype=dtype))


@pytest.mark.parametrize("dtype", FORMS, ids=str)
def test_a_swapped_stride(dtype: torch.dtype, tmp_path: Path) -> None:
    """Rows of the map are 12 pixels apart instead of 15: every access is within bounds and the numbers are wrong."""
    stride = {torch.bfloat16: "{} * CHANNELS,\n", torch.float32: "{} * CHANNELS, used & both"}[dtype]
    with (
        seeded(tmp_path, "roi_align", FORMS[dtype], stride.format("columns"), stride.format("rows")),
        pytest.raises(AssertionError, match=r"error .* is above"),
    ):
        verify(features(dtype=dtype))


def test_half_coordinates_beyond_a_thousand_pixels(tmp_path: Path) -> None:
    """Corners on quarters of a pixel are exact in float16 below 512 pixels, and rounded to whole ones above 1024."""
    near = torch.tensor([[0, 300.25, 4.5, 340.75, 40.25], [1, 420.75, 8.25, 470.25, 30.5]])
    far = near + torch.tensor([0, 1024, 0, 1024, 0])
    feature = features(width=400, dtype=torch.bfloat16)
    with seeded(tmp_path, "roi_align"):
        verify(feature, far)
    folder = tmp_path / "half"
    folder.mkdir()
    half = "x1 = tl.load(rois_ptr + roi * 5 + 1)"
    with seeded(folder, "roi_align", "roi_geometry", half, f"{half}.to(tl.float16).to(tl.float32)"):
        verify(feature, near)
        with pytest.raises(AssertionError, match=r"error .* is above"):
            verify(feature, far)


def keypoints(edit: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Keypoints, the largest value being found by the two warps of a program, by PTX that was edited."""
    heatmaps = torch.randn((2, 3, 14, 14), generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[1.2, 2.1, 39.3, 28.8], [0.4, 5.1, 26.6, 32.9]])
    assemble = triton_kernels._assembled
    monkeypatch.setattr(triton_kernels, "_assembled", lambda ptx, name: assemble(edit(ptx), name))
    with kernels.use("triton"), active():
        return kernels.decode_keypoints(heatmaps, boxes)[0]


def test_a_removed_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the barriers of its maximum, a warp reads from shared memory what another has yet to write."""
    removed = 0

    def without_barriers(ptx: str) -> str:
        nonlocal removed
        edited, count = re.subn(r"bar(?:rier)?\.(?:cta\.)?sync\s+0;", "", ptx)
        removed += count
        return edited

    with monkeypatch.context() as context:
        keypoints(lambda ptx: ptx, context)
    with pytest.raises(VirtualGpuError, match="race in shared memory"), monkeypatch.context() as context:
        keypoints(without_barriers, context)
    assert removed


@triton.jit
def scatter_kernel(grad_ptr, rows_ptr, values_ptr, count, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """grad[rows[i]] += values[i] by atomics, as a gradient that is accumulated in memory."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    row = tl.load(rows_ptr + place // CHANNELS, mask=inside, other=0)
    value = tl.load(values_ptr + place, mask=inside, other=0.0)
    tl.atomic_add(grad_ptr + row * CHANNELS + place % CHANNELS, value, mask=inside)


class Launched:
    """A kernel as `triton.autotune` wants one, launched as ours are."""

    def __init__(self, fn: Any) -> None:
        self.fn, self.arg_names = fn, fn.arg_names

    def run(self, *tensors: Any, grid: Any, warmup: bool, **arguments: Any) -> None:
        tuning.launch(self.fn, grid, tensors, **arguments)


def once(call: Callable[[], None], quantiles: Any) -> list[float]:
    """In the place of `triton.testing.do_bench`, which runs each configuration many times."""
    call()
    return [1.0] * 3


def test_tuning_that_corrupts_an_accumulated_gradient() -> None:
    """Triton's own autotuner runs all configurations into the gradient, before the one that counts."""
    rows = torch.arange(40) % 7
    values = torch.randn((40, 8), generator=torch.Generator().manual_seed(0))
    truth, plain = (
        torch.zeros(7, 8, dtype=dtype).index_add(0, rows, values.to(dtype)) for dtype in (torch.float64, torch.float32)
    )

    def gradient(**protection: Any) -> Tensor:
        configs = [triton.Config({"BLOCK": block}, num_warps=1) for block in (64, 128)]
        tuned = triton.autotune(configs, key=["count"], do_bench=once, **protection)(Launched(scatter_kernel))
        grad = torch.zeros(7, 8)
        with active() as record:
            tuned[lambda meta: (triton.cdiv(320, meta["BLOCK"]),)](grad, rows, values, 320, CHANNELS=8)
        assert [launch.launch.grid[0] for launch in record.launches[:2]] == [5, 3]
        assert len(record.launches) == 3
        return grad

    assert_error_rule(gradient(reset_to_zero=["grad_ptr"]), truth, plain, torch.float32)
    with pytest.raises(AssertionError, match=r"error .* is above"):
        assert_error_rule(gradient(), truth, plain, torch.float32)


def test_our_kernels_survive_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """All configurations of each kernel into the same tensors before the launch that counts, as a tuner does.

    `match_boxes` is the one that combines in memory, by an atomic maximum, which repeating does not change.
    """
    corner = torch.randint(0, 30, (300, 2), generator=torch.Generator().manual_seed(0)).float()
    anchors = torch.cat([corner, corner + 9], dim=1)
    arguments = (anchors, anchors[None, ::31] + 2, torch.tensor([9]))
    with kernels.use("reference"):
        wanted = kernels.match_boxes(*arguments)
    chosen = 0
    launches: list[int] = []
    with (
        kernels.use("triton"),
        active(choose=lambda name, configs: configs[launches.append(len(configs)) or chosen]),
        monkeypatch.context() as context,
    ):
        launch = tuning.launch

        def tune(kernel: Any, grid: Any, tensors: Any, **arguments: Any) -> None:
            nonlocal chosen
            for number in (*range(len(tuning.pruned_configs(kernel, tensors, arguments))), 0):
                chosen = number
                launch(kernel, grid, tensors, **arguments)

        context.setattr(tuning, "launch", tune)
        ours = kernels.match_boxes(*arguments)
    assert len(launches) > 4
    for seen, expected in zip(ours, wanted, strict=True):
        assert (seen is None and expected is None) or seen.equal(expected)

"""What `verify` reports of kernels on the virtual GPU, on small kernels that do what no kernel must do."""

from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from seeded import seeded

from bench.verification.case import verify_case
from bench.verification.operations import OPERATIONS
from bench.verification.places import VirtualGpu
from bench.verification.scenes import scenes
from kernels.gpu import tuning

pytestmark = pytest.mark.compiled


@triton.jit
def _number_kernel(out_ptr, n, FIRST: tl.constexpr, BLOCK: tl.constexpr):
    at = FIRST + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, at, mask=at < n)


@triton.jit
def _last_kernel(out_ptr):
    tl.store(out_ptr, tl.program_id(0))


@triton.jit
def _third_kernel(out_ptr):
    tl.store(out_ptr, tl.load(out_ptr) / 3)


def faults_of(kernel: Any, grid: int, size: int, dtype: torch.dtype, **arguments: Any) -> str:
    def compute() -> dict[str, torch.Tensor]:
        out = torch.empty(size, dtype=dtype)
        tuning.launch(kernel, (grid,), [out], **arguments)
        return {"numbers": out}

    seen = VirtualGpu().run(compute)
    assert set(seen.runs) == {""}  # nothing is approximate
    return "\n".join(seen.faults)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32], ids=str)
def test_memory(dtype: torch.dtype) -> None:
    assert faults_of(_number_kernel, 4, 128, dtype, n=128, FIRST=0, BLOCK=32) == ""
    told = faults_of(_number_kernel, 4, 128, dtype, n=128, FIRST=3, BLOCK=32)
    assert told == "numbers: 3 of 128 elements were not written, the first at [0]"
    told = faults_of(_number_kernel, 5, 128, dtype, n=1000, FIRST=0, BLOCK=32)
    assert "_number_kernel: global memory out of bounds: " in told
    assert "+512, program (4, 0, 0)" in told


def test_order() -> None:
    told = faults_of(_last_kernel, 3, 1, torch.int32)
    assert "numbers: 1 elements depend on the order of warps (quantum 4, reversed)" in told


def test_approximate_instructions_run_at_both_ends() -> None:
    def compute() -> dict[str, torch.Tensor]:
        out = torch.ones(1)
        tuning.launch(_third_kernel, (1,), [out])
        return {"third": out}

    runs = {run: results["third"].item() for run, results in VirtualGpu().run(compute).runs.items()}
    low, high = (runs.pop(f"approximate instructions at their {end} end") for end in ("low", "high"))
    assert low < 1 / 3 < high
    assert low < runs.pop("") < high
    assert not runs


@pytest.mark.parametrize(
    ("operation", "stem", "dtype"),
    [
        ("roi_align", "roi_align", torch.float32),
        ("roi_align", "roi_align", torch.bfloat16),
        ("multiscale_roi_align", "roi_align", torch.float32),
        ("roi_pool", "roi_pool", torch.float32),
        ("nms", "nms", torch.float32),
        ("segmented_nms", "nms", torch.float32),
        ("mask_loss", "mask_loss", torch.float32),
    ],
    ids=str,
)
def test_a_quotient_that_decides_and_is_approximate_is_seen(
    operation: str, stem: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """At an end of its error it takes another number of samples, another bin or another box: `boundaries` has such."""
    (scene,) = (each for each in scenes("tiny") if each.name == "boundaries")
    make, (layout, *_) = OPERATIONS[operation]
    problem = make(scene, dtype, layout)
    with seeded(tmp_path, stem, "language", "tl.div_rn(a, tl.cast(b, tl.float32))", "a / tl.cast(b, tl.float32)"):
        findings = verify_case(problem, dtype, VirtualGpu(), "reference")
    breaches = [each for each in findings if not each.holds]
    assert breaches
    assert all(each.side == "triton" and "approximate instructions at" in each.run for each in breaches)

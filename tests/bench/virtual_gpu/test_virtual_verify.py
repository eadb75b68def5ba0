"""What `verify` reports of kernels on the virtual GPU, on small kernels that do what no kernel must do."""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from bench.verification.places import VirtualGpu
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

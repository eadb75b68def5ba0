"""The decoding kernel, compiled and run on the virtual GPU, at both ends of the error of its exponential."""

import re

import pytest
import torch
from offsets_to_decode import SIZES, WEIGHTS, check, some_anchors, some_offsets, some_scores

import kernels
from bench.virtual_gpu import Options, unwritten
from bench.virtual_gpu.intercept import active
from bench.virtual_gpu.launch import Rounding

pytestmark = pytest.mark.compiled


@pytest.mark.parametrize("rounding", ["nearest", "low", "high"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_decode_boxes(dtype: torch.dtype, rounding: Rounding) -> None:
    with kernels.use("triton"), active(options=Options(rounding=rounding)) as record:
        check(dtype, WEIGHTS[1])
    (launch,) = record.launches
    assert launch.kernel == "_decode_kernel"
    assert launch.launch.approximate == (dtype != torch.float64)


@pytest.mark.parametrize("number", range(4))
def test_every_configuration(number: int) -> None:
    with kernels.use("triton"), active(choose=lambda _, configs: configs[number]):
        check(torch.float32, WEIGHTS[0], number=300)


def test_a_box_is_read_and_written_at_once() -> None:
    """16 bytes a thread, also where classes are strided and share an anchor, and nothing through shared memory."""
    offsets, scores = some_offsets(2, 300, 3), some_scores(2, 300, 3)
    with kernels.use("triton"), active() as record:
        boxes, _ = kernels.decode_boxes(
            offsets.transpose(1, 2), some_anchors(300)[:, None], scores.transpose(1, 2), SIZES
        )
    assert not bool(unwritten(boxes).any())
    (launch,) = record.launches
    assert len(re.findall(r"ld\.global\.v4\.b32", launch.ptx)) == 2
    assert "st.global.v4.b32" in launch.ptx
    assert ".shared" not in launch.ptx

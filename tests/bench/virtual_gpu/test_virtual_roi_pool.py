"""The RoIPool kernels, compiled and run on the virtual GPU."""

import pytest
import torch
from rois_to_pool import check, features, rois

import kernels
from bench.virtual_gpu.intercept import active

pytestmark = pytest.mark.compiled


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_roi_pool(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    with kernels.use("triton"), active() as record:
        check(features(dtype, memory_format, channels=40), rois(9), (3, 4), 0.25)
    assert [launch.kernel for launch in record.launches] == ["_pool_kernel", "_source_kernel"]
    assert record.counters.atomic_requests == 0


@pytest.mark.parametrize("number", range(7))
def test_every_configuration(number: int) -> None:
    with kernels.use("triton"), active(choose=lambda _, configs: configs[min(number, len(configs) - 1)]):
        check(features(channels=300), rois(3), (2, 2), 0.25)

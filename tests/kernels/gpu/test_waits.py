"""Which operations wait for the device: those whose result has a size that only values tell."""

import pytest
import torch
from operations import OPERATIONS

from bench.virtual_gpu.intercept import active

pytestmark = pytest.mark.compiled

WAITING = {"nms", "batched_nms"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_waits_only_if_its_result_has_no_known_size(name: str) -> None:
    operation = getattr(torch.ops.mrcnn, name).default
    arguments = OPERATIONS[name](torch.channels_last, "triton")
    with active() as record:
        operation(*arguments)
    assert record.launches
    assert any(each.waits for each in record.operations) == (name in WAITING)

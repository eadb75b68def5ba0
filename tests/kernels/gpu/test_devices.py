"""Every launch is made on the device of its tensors: Triton launches on the current one, which may be another."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from operations import OPERATIONS
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bench.virtual_gpu.torch_operations import Watch
from kernels.gpu import tuning

pytestmark = pytest.mark.compiled


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_launches_are_on_the_device_of_the_tensors(
    name: str, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = OPERATIONS[name](memory_format, "triton")
    given = [each for each in tree_leaves(arguments) if isinstance(each, Tensor)]
    current: list[Tensor] = []
    launched: list[str] = []

    @contextmanager
    def on_device_of(tensor: Tensor) -> Iterator[None]:
        current.append(tensor)
        yield
        current.pop()

    def launch(kernel: Any, grid: Any, tensors: Any, **keywords: Any) -> None:
        assert current, f"{kernel} is launched on whatever device is the current one"
        launched.append(str(kernel))
        # All that is given is on one device, which was checked; and so is what the kernel is given.
        known = [*given, *(each for each in tree_leaves(tensors) if isinstance(each, Tensor))]
        storages = {each.untyped_storage().data_ptr() for each in known}
        assert all(each.untyped_storage().data_ptr() in storages for each in current), kernel

    monkeypatch.setattr(tuning, "on_device_of", on_device_of)
    monkeypatch.setattr(tuning, "launch", launch)
    with Watch(lambda _: None, 0):
        getattr(torch.ops.mrcnn, name).default(*arguments)
    assert launched
    assert not current


def test_the_device_of_a_tensor_on_a_gpu_is_made_current(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    @contextmanager
    def device(which: torch.device) -> Iterator[None]:
        asked.append(which)
        yield

    class OnSecondGpu:
        is_cuda, device = True, torch.device("cuda", 1)

    monkeypatch.setattr(torch.cuda, "device", device)
    with tuning.on_device_of(OnSecondGpu()):  # type: ignore[arg-type]
        pass
    with tuning.on_device_of(torch.zeros(1)):
        pass
    assert asked == [torch.device("cuda", 1)]

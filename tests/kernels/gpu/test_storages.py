"""No two arguments of a launch share a storage: an index past the end of one never reaches another unseen.

The virtual GPU checks bounds storage by storage; and views of one may be aligned otherwise from launch to launch, for
which Triton compiles anew.
"""

import pytest
import torch
from operations import OPERATIONS
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bench.compiled.launches import recorded
from bench.virtual_gpu.torch_operations import Watch

pytestmark = pytest.mark.compiled


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_argument_has_a_storage_of_its_own(name: str, memory_format: torch.memory_format) -> None:
    operation = getattr(torch.ops.mrcnn, name).default
    # Nothing is launched, so what is allocated is filled with zeros: some of it is used as indices.
    with Watch(lambda _: None, 0), recorded() as launches:
        operation(*OPERATIONS[name](memory_format, "triton"))
    assert launches
    for launch in launches:
        tensors = [each for each in tree_leaves(launch.tensors) if isinstance(each, Tensor) and each.numel()]
        storages = {each.untyped_storage().data_ptr() for each in tensors}
        assert len(storages) == len(tensors), launch.name

"""Exported graphs with the Triton kernels, interpreted: strides and implementation are those of where they run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from error_rule import assert_error_rule
from public_functions import PUBLIC_FUNCTIONS
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kernels import use

pytestmark = pytest.mark.interpreter


def crop(x: Tensor) -> Tensor:
    """Of a larger tensor, as a part of a feature map is."""
    larger = x.new_full((*x.shape[:-1], x.shape[-1] + 3), 7)
    larger[..., 1:-2] = x
    return larger[..., 1:-2]


def repeated(x: Tensor) -> Tensor:
    """The first, as often as there were: a storage with room for one."""
    return x[:1].clone().expand_as(x)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


VIEWS: list[Callable[[Tensor], Tensor]] = [crop, repeated, channels_last]
# Those that look at maps, of whose strides something is assumed.
OF_MAPS = [
    "roi_align",
    "multiscale_roi_align",
    "roi_pool",
    "mask_loss",
    "mask_predict",
    "mask_predict_loss",
    "decode_keypoints",
]


def exported(name: str) -> Callable[..., Any]:
    call = PUBLIC_FUNCTIONS[name](3, torch.float32)

    class Module(nn.Module):
        def forward(self, *tensors: Tensor) -> Any:
            return call.function(*tensors)

    module: Callable[..., Any] = torch.export.export(Module(), tuple(each.detach() for each in call.tensors)).module()
    return module


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: str(view.__name__))
@pytest.mark.parametrize("name", OF_MAPS)
def test_other_strides_than_those_of_the_example(name: str, view: Callable[[Tensor], Tensor]) -> None:
    call = PUBLIC_FUNCTIONS[name](3, torch.float32)
    tensors = [each.detach() for each in call.tensors]
    for place, each in enumerate(tensors):
        if each.ndim == 4:
            tensors[place] = view(each)
    seen = pytree.tree_leaves(exported(name)(*tensors))

    def reference(dtype: torch.dtype) -> list[Tensor]:
        with use("reference"):
            result = call.function(*(each.to(dtype) if each.is_floating_point() else each.clone() for each in tensors))
        return pytree.tree_leaves(result)

    for ours, truth, plain in zip(seen, reference(torch.float64), reference(torch.float32), strict=True):
        assert_error_rule(ours, truth, plain, torch.float32)


@pytest.mark.parametrize("name", PUBLIC_FUNCTIONS)
def test_the_device_decides_where_a_graph_runs(name: str) -> None:
    call = PUBLIC_FUNCTIONS[name](3, torch.float32)

    class Module(nn.Module):
        def forward(self, *tensors: Tensor) -> Any:
            return call.function(*tensors)

    graph = torch.export.export(Module(), tuple(each.detach() for each in call.tensors)).graph
    ours = [node for node in graph.nodes if str(node.target).startswith("mrcnn.")]
    assert len(ours) == call.operations
    assert all("auto" in node.args for node in ours)

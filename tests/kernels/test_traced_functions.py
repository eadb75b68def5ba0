"""Every public function compiled as one graph, exported, and under autocast, as models use it."""

import pkgutil
from importlib import import_module
from typing import Any

import pytest
import torch
from public_functions import PUBLIC_FUNCTIONS
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from kernels import use

# Names that are no function from tensors to tensors, which a graph could hold.
NOT_TRACED = {
    "MaskCounts": "a tuple",
    "PackedMasks": "a tuple",
    "Polygons": "a tuple",
    "encode_masks": "makes bytes, for which it waits; mask_runs is what a graph can hold",
    "polygons_from_coco": "takes lists of numbers",
    "use": "chooses an implementation",
}
FORMS = {"mask_loss_of_packed_masks", "mask_loss_of_polygons"}  # of arguments of one function

every_function = pytest.mark.parametrize("name", PUBLIC_FUNCTIONS)


def test_every_function_is_here() -> None:
    assert set(PUBLIC_FUNCTIONS) - FORMS == set(kernels.__all__) - set(NOT_TRACED)


def assert_same(seen: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(seen, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@every_function
def test_one_more_does_not_compile_again(name: str) -> None:
    """Forward and backward in one graph; a count that was seen to change once may change as it likes."""
    torch._dynamo.reset()
    compiled = torch.compile(PUBLIC_FUNCTIONS[name](2, torch.float32).function, fullgraph=True, backend="aot_eager")
    with use("eager"):
        for number in (65, 66):  # fixed, then any
            call = PUBLIC_FUNCTIONS[name](number, torch.float32)
            assert_same(call.differentiate(compiled), call.differentiate(call.function))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for number in (67, 68, 128, 129, 9):
                call = PUBLIC_FUNCTIONS[name](number, torch.float32)
                assert_same(call.differentiate(compiled), call.differentiate(call.function))


def test_a_count_that_is_fixed_is_seen() -> None:
    """The check above can fail."""

    def fixed(boxes: Tensor, scores: Tensor) -> Tensor:
        return kernels.nms(boxes, scores, 0.3) * len(range(boxes.shape[0]))

    torch._dynamo.reset()
    compiled = torch.compile(fixed, fullgraph=True, backend="aot_eager")
    tensors = [PUBLIC_FUNCTIONS["nms"](number, torch.float32).tensors for number in (65, 66, 67)]
    compiled(*tensors[0])
    compiled(*tensors[1])
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        pytest.raises(torch._dynamo.exc.RecompileError),
    ):
        compiled(*tensors[2])


@every_function
def test_export(name: str) -> None:
    """Exported for any number, run for others."""

    call = PUBLIC_FUNCTIONS[name](5, torch.float32)

    class Module(nn.Module):
        def forward(self, *tensors: Tensor) -> Any:
            return call.function(*tensors)

    def inputs(number: int) -> tuple[Tensor, ...]:
        return tuple(each.detach() for each in PUBLIC_FUNCTIONS[name](number, torch.float32).tensors)

    number = torch.export.Dim("number", min=2, max=1000)
    shapes = tuple({0: number} if place in call.counts else None for place in range(len(call.tensors)))
    with use("eager"):
        exported = torch.export.export(Module(), inputs(5), dynamic_shapes={"tensors": shapes})
        targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
        assert sum(target.startswith("mrcnn.") for target in targets) == call.operations
        for count in (5, 6, 40):
            seen = pytree.tree_leaves(exported.module()(*inputs(count)))
            assert_same(seen, pytree.tree_leaves(call.function(*inputs(count))))


class Calls(TorchDispatchMode):
    """Our operations with their arguments' dtypes, and the conversions around them: sizes of what is converted."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, list[torch.dtype]]] = []
        self.converted: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "mrcnn":
            tensors = [each for each in pytree.tree_leaves(args) if isinstance(each, Tensor)]
            self.operations.append((func.name(), [each.dtype for each in tensors]))
        elif func.overloadpacket is torch.ops.aten._to_copy and (kwargs or {}).get("dtype") not in (
            None,
            args[0].dtype,
        ):
            self.converted.append(args[0].numel())
        return func(*args, **kwargs)


@every_function
def test_bfloat16_is_taken_as_it_is(name: str) -> None:
    """Under autocast too: the operation gets the tensors that hold much in bfloat16, and nothing large is converted."""
    call = PUBLIC_FUNCTIONS[name](6, torch.bfloat16)
    tensors = [each.detach() for each in call.tensors]
    for enabled in (False, True):
        calls = Calls()
        with use("eager"), torch.autocast("cpu", torch.bfloat16, enabled=enabled), calls:
            call.function(*tensors)
        assert len(calls.operations) == call.operations
        for _, dtypes in calls.operations[-1:]:  # those before make masks of polygons
            assert [dtypes[place] for place in call.large] == [tensors[place].dtype for place in call.large]
        assert all(size <= 6 * 5 for size in calls.converted), "RoIs may be converted, features not"


def test_features_of_an_autocast_layer_are_taken_as_they_are() -> None:
    """And their gradient goes back in bfloat16: the only conversions are those of the layer's own parameters."""
    layer = nn.Conv2d(3, 4, 3, padding=1)
    image, rois = torch.randn(2, 3, 16, 16), PUBLIC_FUNCTIONS["roi_align"](6, torch.float32).tensors[1]
    calls = Calls()
    with calls, use("eager"):
        with torch.autocast("cpu", torch.bfloat16):
            features = layer(image)
            pooled = kernels.roi_align(features, rois, 7, 0.5)
        pooled.backward(torch.ones_like(pooled))
    assert pooled.dtype == features.dtype == torch.bfloat16
    forward, backward = calls.operations
    assert forward == ("mrcnn::roi_align", [torch.bfloat16, torch.float32])
    assert backward == ("mrcnn::roi_align_backward", [torch.bfloat16, torch.float32])
    own = [image.numel(), *[each.numel() for each in layer.parameters()]]
    assert set(calls.converted) <= set(own)


@every_function
def test_tracing_launches_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors take the shapes' way, whatever the implementation: nothing is run, measured or compiled."""

    def run(*_: Any) -> None:
        raise AssertionError("an implementation was called")

    for module in pkgutil.iter_modules(kernels.__path__):
        if hasattr(import_module(f"kernels.{module.name}"), "run"):
            monkeypatch.setattr(import_module(f"kernels.{module.name}"), "run", run)
    call = PUBLIC_FUNCTIONS[name](6, torch.float32)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode, use("triton"):
        fakes = [mode.from_tensor(each) for each in call.tensors]
        results = pytree.tree_leaves(call.function(*fakes))
        leaves = [each for each in fakes if each.requires_grad]
        if leaves:
            torch.autograd.grad(results[0].float().sum(), leaves)

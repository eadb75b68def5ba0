"""What torch.library and torch.compile ask of every operation: schemas, fakes, gradients, tracing as one graph."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from operations import OPERATIONS, differentiable, gradcheck
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree

import kernels
from bench.virtual_gpu import has_compiler
from kernels import (
    decode_boxes,
    decode_keypoints,
    mask_loss,
    mask_predict,
    mask_predict_loss,
    mask_runs,
    match_boxes,
    multiscale_roi_align,
    nms,
    paste_masks,
    roi_align,
    roi_pool,
    segmented_nms,
    use,
)

FORMATS = [torch.contiguous_format, torch.channels_last]
SIZE_DEPENDS_ON_VALUES = ("nms", "batched_nms")


def operation(name: str) -> Any:
    return getattr(torch.ops.mrcnn, name).default


def test_every_operation_is_here() -> None:
    sources = Path(kernels.__file__).parent.glob("*.py")
    registered = {name for source in sources for name in re.findall(r'"mrcnn::(\w+)"', source.read_text())}
    assert registered == set(OPERATIONS)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_opcheck(name: str, memory_format: torch.memory_format) -> None:
    """Schema, autograd registration, fake against real, and tracing forward and backward with symbolic sizes."""
    passed = torch.library.opcheck(operation(name), OPERATIONS[name](memory_format, "eager"))
    assert set(passed.values()) == {"SUCCESS"}


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("implementation", ["eager", "reference"])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if differentiable(name)])
def test_gradcheck(name: str, implementation: str, memory_format: torch.memory_format) -> None:
    assert gradcheck(name, memory_format, implementation)


def test_what_has_a_gradient() -> None:
    """Everything else says so, where it could be asked for."""
    assert set(filter(differentiable, OPERATIONS)) == {
        "roi_align",
        "mask_loss",
        "mask_predict",
        "mask_predict_loss",
        "roi_pool",
    }
    masks, boxes = torch.rand((1, 5, 5), requires_grad=True), torch.tensor([[1.0, 2, 9, 8]])
    with use("eager"), pytest.raises(RuntimeError, match=r"mrcnn\.paste_masks"):
        paste_masks(masks, boxes, (12, 14), None).sum().backward()


def layout(result: Any) -> list[tuple[Any, ...]]:
    """Shape, strides where they matter, and dtype of each tensor."""
    return [
        (
            tuple(each.shape),
            tuple(stride for size, stride in zip(each.shape, each.stride(), strict=True) if size > 1),
            each.dtype,
        )
        for each in pytree.tree_leaves(result)
    ]


def with_dtype(arguments: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """The same with the first argument, which sets the result's dtype, in `dtype`."""
    first = pytree.tree_map(lambda x: x.detach().to(dtype), arguments[0])
    return first, *arguments[1:]


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("implementation", ["eager", "reference"])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in SIZE_DEPENDS_ON_VALUES])
def test_fakes_have_the_layout_of_the_real(
    name: str, implementation: str, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    arguments = with_dtype(OPERATIONS[name](memory_format, implementation), dtype)
    with FakeTensorMode() as mode:
        fake = operation(name)(*pytree.tree_map_only(Tensor, mode.from_tensor, arguments))
    assert layout(operation(name)(*arguments)) == layout(fake)


def compiled(function: Callable[..., Any], **options: Any) -> tuple[Callable[..., Any], list[Any]]:
    """`function` compiled as one graph, and a list that grows by each graph compiled."""
    graphs: list[Any] = []
    aot_eager = torch._dynamo.lookup_backend("aot_eager")

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend, **options), graphs


def test_compiled_pooling_takes_any_number_of_boxes() -> None:
    """Forward and backward, in one graph for all numbers."""

    def function(features: list[Tensor], rois: Tensor) -> Tensor:
        return multiscale_roi_align(features, rois, 3, [0.25, 0.125], canonical_scale=16, canonical_level=2)

    generator = torch.Generator().manual_seed(0)
    with use("eager"):
        fast, graphs = compiled(function, dynamic=True)
        for number in (11, 2, 9, 30):
            features = [torch.randn((2, 3, size, size), generator=generator).requires_grad_() for size in (8, 4)]
            rois = torch.rand((number, 5), generator=generator).sort(dim=1).values * torch.tensor([0, 16, 16, 30, 30])
            results = []
            for each in (function, fast):
                result = each(features, rois)
                results.append([result, *torch.autograd.grad(result.square().sum(), features)])
            for plain, traced in zip(*results, strict=True):
                assert torch.equal(plain, traced)
    assert len(graphs) == 1


def test_compiled_selection_feeds_pooling_and_pasting() -> None:
    """The number of kept boxes is known only when it runs: nothing may ask for it while tracing."""

    def function(features: Tensor, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        kept = boxes[nms(boxes, scores, 0.5)]
        pooled = roi_align(features, torch.cat([torch.zeros_like(kept[:, :1]), kept], dim=1), 4, 0.5)
        return pooled, paste_masks(pooled.sigmoid().mean(dim=1), kept, (20, 24), 0.5, "centers")

    generator = torch.Generator().manual_seed(0)
    features = torch.randn((1, 3, 10, 12), generator=generator)
    with use("eager"):
        fast, graphs = compiled(function, dynamic=True)
        for number in (13, 7, 40):
            corner = torch.rand((number, 2), generator=generator) * 12
            boxes = torch.cat([corner, corner + 3 + torch.rand((number, 2), generator=generator) * 8], dim=1)
            scores = torch.rand(number, generator=generator)
            for plain, traced in zip(function(features, boxes, scores), fast(features, boxes, scores), strict=True):
                assert torch.equal(plain, traced)
    assert len(graphs) == 1


@pytest.mark.long
@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler (g++ or clang++)")
def test_machine_code_of_selection_and_pooling() -> None:
    """As users compile, by inductor: what it makes around the operations, forward and backward, for any number."""

    def function(features: Tensor, boxes: Tensor, scores: Tensor) -> Tensor:
        kept = boxes[nms(boxes, scores, 0.5)]
        rois = torch.cat([torch.zeros_like(kept[:, :1]), kept], dim=1)
        return roi_align(features.relu(), rois, 4, 0.5) * 2

    generator = torch.Generator().manual_seed(0)
    torch._dynamo.reset()
    fast = torch.compile(function, fullgraph=True, dynamic=True)
    with use("eager"), torch._dynamo.config.patch(error_on_recompile=True):
        for number in (9, 14):
            features = torch.randn((1, 3, 10, 12), generator=generator).requires_grad_()
            corner, size = torch.rand((2, number, 2), generator=generator) * 10
            boxes, scores = torch.cat([corner, corner + size], dim=1), torch.rand(number, generator=generator)
            results = []
            for each in (function, fast):
                pooled = each(features, boxes, scores)
                results.append([pooled, *torch.autograd.grad(pooled.square().sum(), features)])
            for plain, traced in zip(*results, strict=True):
                assert torch.equal(plain, traced)


def test_compiled_selection_of_fixed_size() -> None:
    def function(boxes: Tensor, scores: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        return segmented_nms(boxes, scores, 0.5, 4, counts)

    generator = torch.Generator().manual_seed(0)
    with use("eager"):
        fast, graphs = compiled(function, dynamic=True)
        for segments, number in ((2, 9), (3, 20), (5, 6)):
            corner = torch.rand((segments, number, 2), generator=generator) * 9
            arguments = (
                torch.cat([corner, corner + 5], dim=2),
                torch.rand((segments, number), generator=generator),
                (torch.arange(segments) * 2).clamp(max=number),
            )
            for plain, traced in zip(function(*arguments), fast(*arguments), strict=True):
                assert torch.equal(plain, traced)
    assert len(graphs) == 1


def test_compiled_loss_takes_any_number_of_rois() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand((2, 13, 11), generator=generator) > 0.5
    with use("eager"):
        fast, graphs = compiled(mask_loss, dynamic=True)
        for number in (5, 2, 9):
            logits = torch.randn((number, 3, 4, 4), generator=generator, requires_grad=True)
            corner = torch.rand((number, 2), generator=generator) * 5
            boxes = torch.cat([corner, corner + 4], dim=1)
            labels, index = torch.arange(number) % 3, torch.arange(number) % 2
            weights = torch.rand(number, generator=generator)
            results = []
            for each in (mask_loss, fast):
                loss = each(logits, labels, boxes, masks, index, weights)
                results.append([loss, *torch.autograd.grad(loss, logits)])
            for plain, traced in zip(*results, strict=True):
                assert torch.equal(plain, traced)
    assert len(graphs) == 1


def test_compiled_maximum_pooling_takes_any_number_of_boxes() -> None:
    generator = torch.Generator().manual_seed(0)
    with use("eager"):
        fast, graphs = compiled(lambda x, rois: roi_pool(x, rois, 4, 0.25), dynamic=True)
        for number in (11, 2, 9):
            features = torch.randn((2, 3, 8, 10), generator=generator, requires_grad=True)
            rois = torch.rand((number, 5), generator=generator).sort(dim=1).values * torch.tensor([0, 16, 16, 30, 30])
            results = []
            for each in (lambda x, rois: roi_pool(x, rois, 4, 0.25), fast):
                result = each(features, rois)
                results.append([result, *torch.autograd.grad(result.square().sum(), features)])
            for plain, traced in zip(*results, strict=True):
                assert torch.equal(plain, traced)
    assert len(graphs) == 1


def test_compiled_decoding_takes_any_number_of_boxes() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([[20, 30], [40, 10]])
    # Numbers that are not tensors are first made dynamic, then constants: two graphs in one compilation.
    with use("eager"), torch._dynamo.config.patch(error_on_recompile=True):
        fast, _ = compiled(decode_boxes, dynamic=True)
        for number in (7, 3, 12):
            offsets = torch.randn((2, number, 5, 4), generator=generator).transpose(1, 2)
            anchors = torch.rand((2, 1, number, 4), generator=generator).sort(dim=-1).values * 30
            scores = torch.rand((2, 5, number), generator=generator)
            for plain, traced in zip(
                decode_boxes(offsets, anchors, scores, sizes), fast(offsets, anchors, scores, sizes), strict=True
            ):
                assert torch.equal(plain, traced)


def test_compiled_keypoints_take_any_number_of_boxes() -> None:
    generator = torch.Generator().manual_seed(0)
    with use("eager"):
        fast, graphs = compiled(decode_keypoints, dynamic=True)
        for number in (5, 2, 9):
            heatmaps = torch.randn((number, 3, 6, 7), generator=generator)
            boxes = torch.rand((number, 4), generator=generator).sort(dim=1).values * 24
            for plain, traced in zip(decode_keypoints(heatmaps, boxes), fast(heatmaps, boxes), strict=True):
                assert torch.equal(plain, traced)
    assert len(graphs) == 1


def test_compiled_encoding_takes_any_number_of_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    # Numbers that are not tensors are first made dynamic, then constants: two graphs in one compilation.
    with use("eager"), torch._dynamo.config.patch(error_on_recompile=True):
        fast, _ = compiled(lambda masks, boxes: mask_runs(masks, boxes, (20, 24)), dynamic=True)
        for number in (5, 2, 9):
            masks = torch.rand((number, 7, 7), generator=generator)
            boxes = torch.rand((number, 4), generator=generator).sort(dim=1).values * 24
            for plain, traced in zip(mask_runs(masks, boxes, (20, 24)), fast(masks, boxes), strict=True):
                assert torch.equal(plain, traced)


def test_compiled_matching_takes_any_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    with use("eager"):
        fast, graphs = compiled(match_boxes, dynamic=True)
        for images, number, capacity in ((2, 9, 3), (3, 20, 5), (5, 6, 4)):
            anchors, gt_boxes = (
                torch.rand((*shape, 4), generator=generator).sort(dim=-1).values
                for shape in ((number,), (images, capacity))
            )
            counts = torch.arange(images).clamp(max=capacity)
            seen = fast(anchors, gt_boxes, counts)
            for plain, traced in zip(match_boxes(anchors, gt_boxes, counts), seen, strict=True):
                assert torch.equal(plain, traced)
    assert len(graphs) == 1


@pytest.mark.parametrize("blocked", [False, True])
def test_compiled_class_logits_take_any_number_of_rois(blocked: bool) -> None:
    """The loss, the probabilities and all gradients."""

    def function(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, *targets: Tensor) -> Tensor:
        loss = mask_predict_loss(features, weight, bias, labels, *targets)
        return loss + mask_predict(features, weight, bias, labels).square().mean()

    generator = torch.Generator().manual_seed(0)
    masks = torch.rand((2, 13, 11), generator=generator) > 0.5
    weight, bias = torch.randn((3, 5), generator=generator), torch.randn(3, generator=generator)
    with use("eager"):
        fast, graphs = compiled(function, dynamic=True)
        for number in (7, 2, 9):
            shape = (number, 2, 2, 2, 2, 5) if blocked else (number, 5, 4, 4)
            leaves = [each.requires_grad_() for each in (torch.randn(shape, generator=generator), weight, bias)]
            boxes = torch.rand((number, 4), generator=generator).sort(dim=1).values * 10
            labels, index = torch.arange(number) % 3, torch.arange(number) % 2
            weights = torch.rand(number, generator=generator)
            results = []
            for each in (function, fast):
                result = each(*leaves, labels, boxes, masks, index, weights)
                results.append([result, *torch.autograd.grad(result, leaves)])
            for plain, traced in zip(*results, strict=True):
                assert torch.equal(plain, traced)
    assert len(graphs) == 1


def test_the_choice_of_implementation_is_made_while_tracing() -> None:
    features, rois = torch.randn(1, 1, 6, 6), torch.tensor([[0.0, 1, 1, 4, 4]])
    for implementation in ("eager", "reference"):
        with use(implementation):
            fast, graphs = compiled(lambda x: roi_align(x, rois, 2))
            fast(features)
        (graph,) = graphs
        (node,) = [node for node in graph.graph.nodes if "roi_align" in str(node.target)]
        assert node.args[-1] == implementation

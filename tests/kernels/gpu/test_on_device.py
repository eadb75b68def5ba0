"""The kernels on a real GPU: full shapes against the eager implementation in float64, and what only a GPU has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from error_rule import assert_error_rule
from masks_to_encode import encoded
from operations import OPERATIONS
from torch import Tensor
from torch.utils import _pytree as pytree

import kernels
from kernels.gpu import match_boxes

pytestmark = pytest.mark.gpu

SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def pyramid(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(2, 256, round(800 * scale), round(1344 * scale)) for scale in SCALES]
    return [torch.randn(size, generator=generator).to(dtype).to(memory_format=torch.channels_last) for size in sizes]


def rois(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand((number, 2), generator=generator) * torch.tensor([1200.0, 700.0])
    size = torch.exp(torch.rand((number, 2), generator=generator) * 3 + 2.5)
    image = torch.randint(2, (number, 1), generator=generator).float()
    return torch.cat([image, corner, corner + size], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("output_size", [7, 14])
def test_roi_align_at_full_size(dtype: torch.dtype, output_size: int) -> None:
    features, boxes = pyramid(dtype), rois(200)
    truth = kernels.multiscale_roi_align([each.double() for each in features], boxes.double(), output_size, SCALES)
    plain = kernels.multiscale_roi_align([each.float() for each in features], boxes, output_size, SCALES).to(dtype)
    on_device = [each.cuda().requires_grad_() for each in features]
    seen = kernels.multiscale_roi_align(on_device, boxes.cuda(), output_size, SCALES)
    assert_error_rule(seen.detach().cpu(), truth, plain, dtype)
    again = torch.autograd.grad(seen, on_device, torch.ones_like(seen), retain_graph=True)
    for first, second in zip(again, torch.autograd.grad(seen, on_device, torch.ones_like(seen)), strict=True):
        assert torch.equal(first, second), "the backward pass must give the same bits each time"


@pytest.mark.parametrize("number", [50, 100, 250, 1000, 5000, 20_000])
def test_segmented_nms_keeps_what_the_cpu_keeps(number: int) -> None:
    """At once, by a sort, and with rows of as many words as more and more warps read."""
    boxes = rois(4 * number)[:, 1:].view(4, number, 4)
    scores = torch.rand((4, number), generator=torch.Generator().manual_seed(2))
    expected = kernels.segmented_nms(boxes, scores, 0.5, 300)
    seen = kernels.segmented_nms(boxes.cuda(), scores.cuda(), 0.5, 300)
    assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(seen, expected, strict=True))


def test_segmented_nms_is_captured_in_a_graph() -> None:
    """A capture fails at any wait for the device."""
    boxes, scores = rois(1000)[:, 1:].view(1, 1000, 4).cuda(), torch.rand((1, 1000), device="cuda")
    expected = kernels.segmented_nms(boxes, scores, 0.5, 100)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seen = kernels.segmented_nms(boxes, scores, 0.5, 100)
    graph.replay()
    assert all(torch.equal(first, second) for first, second in zip(seen, expected, strict=True))


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("nms", "batched_nms")])
def test_every_operation_is_captured_in_a_graph(name: str) -> None:
    """But those whose result has a size that only values tell. Captured first, so that nothing has been tuned."""
    operation = getattr(torch.ops.mrcnn, name).default
    arguments = pytree.tree_map(
        lambda each: each.detach().cuda() if isinstance(each, Tensor) else each,
        OPERATIONS[name](torch.channels_last, "triton"),
    )
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seen = pytree.tree_leaves(operation(*arguments))
    graph.replay()
    expected = pytree.tree_leaves(operation(*arguments))
    assert all(torch.equal(first, second) for first, second in zip(seen, expected, strict=True))


FIRST_CALL_IN_A_GRAPH = """
import torch, kernels
from kernels.gpu import tuning
def never(*_): raise AssertionError("measured")
tuning.benchmark = never
features = torch.ones((1, 64, 32, 32), device="cuda").contiguous(memory_format=torch.channels_last)
rois = torch.tensor([[0.0, 1, 1, 20, 20]], device="cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    pooled = kernels.roi_align(features, rois, 7)
graph.replay()
assert torch.equal(pooled, torch.ones_like(pooled))
"""


def test_the_first_call_of_a_process_is_captured_in_a_graph(tmp_path: Path) -> None:
    """Nothing was compiled, loaded or measured before."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "triton"), "MRCNN_TUNING_FOLDER": str(tmp_path)}
    environment.pop("MRCNN_PIN_CONFIG", None)
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALL_IN_A_GRAPH],
        env=environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_tuning_finds_and_keeps_a_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Forced matches, which are accumulated, are the same while tuning and after."""
    monkeypatch.setenv("MRCNN_TUNING_FOLDER", str(tmp_path))
    monkeypatch.delenv("MRCNN_PIN_CONFIG", raising=False)
    for kernel in (match_boxes._best_kernel, match_boxes._forced_kernel):
        monkeypatch.setattr(kernel, "cache", {})
    boxes = rois(3000)[:, 1:]
    arguments = (boxes, boxes[None, :20], torch.tensor([20]))
    expected = kernels.match_boxes(*arguments)
    for _ in range(2):
        seen = kernels.match_boxes(*[each.cuda() for each in arguments])
        assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(seen, expected, strict=True))
    (table,) = tmp_path.glob("*.json")
    assert "_best_kernel" in table.read_text()


def test_masks_are_encoded_as_they_are_pasted() -> None:
    boxes, generator = rois(60)[:, 1:].cuda(), torch.Generator().manual_seed(3)
    masks = torch.rand((60, 28, 28), generator=generator).cuda()
    for rule in ("torchvision", "centers"):
        seen = kernels.encode_masks(masks, boxes, (800, 1333), 0.5, rule)
        assert seen == encoded(masks, boxes, (800, 1333), 0.5, rule)


def test_runs_are_captured_in_a_graph() -> None:
    boxes, masks = rois(20)[:, 1:].cuda(), torch.rand((20, 28, 28), device="cuda")
    expected = kernels.mask_runs(masks, boxes, (800, 1333))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seen = kernels.mask_runs(masks, boxes, (800, 1333))
    graph.replay()
    assert all(torch.equal(first, second) for first, second in zip(seen, expected, strict=True))

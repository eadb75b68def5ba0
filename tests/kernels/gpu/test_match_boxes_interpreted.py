"""The matching kernels, interpreted, against the reference: selections are exact, and so are overlaps."""

import pytest
import torch
from error_rule import assert_error_rule
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from kernels import match_boxes as public_match_boxes
from kernels import use
from kernels.gpu.match_boxes import match_boxes
from kernels.reference.match_boxes import match_boxes as reference

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]


def grid_boxes(*shape: int, seed: int, smallest: int = 1) -> Tensor:
    """Boxes on a coarse grid: equal overlaps are frequent; with `smallest` 0 some have no area."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 8, (*shape, 2), generator=generator)
    size = torch.randint(smallest, 7, (*shape, 2), generator=generator)
    return torch.cat([low, low + size], dim=-1).float() * 10


def check(anchors: Tensor, gt_boxes: Tensor, counts: Tensor, with_forced: bool = True) -> None:
    seen = match_boxes(anchors, gt_boxes, counts, with_forced)
    for ours, true in zip(seen, reference(anchors, gt_boxes, counts, with_forced), strict=True):
        assert ours.dtype == true.dtype
        assert torch.equal(ours, true)


@pytest.mark.parametrize("with_forced", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("number", [1, 127, 128, 129, 300])
def test_around_the_size_of_a_block(number: int, shared: bool, with_forced: bool) -> None:
    anchors = grid_boxes(3, number, seed=number)
    gt_boxes, counts = grid_boxes(3, 20, seed=1), torch.tensor([20, 3, 0])
    check(anchors[0] if shared else anchors, gt_boxes, counts, with_forced)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 70])
def test_around_the_size_of_a_word(count: int) -> None:
    check(grid_boxes(90, seed=2), grid_boxes(1, 70, seed=3), torch.tensor([count]))


def test_blocks_that_reach_only_some_ground_truth() -> None:
    """Anchors row after row along the image, objects anywhere: in no place of a word alike."""
    left = torch.arange(0, 3000.0, 10)
    anchors = torch.stack([left, left % 70, left + 35, left % 70 + 40], dim=1)
    corner = torch.rand((1, 50, 2), generator=torch.Generator().manual_seed(0)) * torch.tensor([3000.0, 90])
    check(anchors, torch.cat([corner, corner + 45], dim=2), torch.tensor([50]))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_a_count_that_cannot_be(dtype: torch.dtype) -> None:
    """Of the launcher, as on a GPU: it is taken to be the nearest that can, and nothing outside is read."""
    anchors, gt_boxes = grid_boxes(50, seed=2), grid_boxes(3, 9, seed=3)
    counts = torch.tensor([10, -1, 2**31 - 1 if dtype == torch.int32 else 2**40 + 3], dtype=dtype)
    seen = match_boxes(anchors, gt_boxes, counts, True)
    for ours, true in zip(seen, reference(anchors, gt_boxes, torch.tensor([9, 0, 9]), True), strict=True):
        assert torch.equal(ours, true)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    anchors, gt_boxes = grid_boxes(150, seed=4) * 1.37, grid_boxes(2, 9, seed=5) * 1.37
    check(anchors.to(dtype), gt_boxes.to(dtype), torch.tensor([9, 5]))
    check(anchors.to(dtype), gt_boxes, torch.tensor([9, 5], dtype=torch.int32))


def test_overlaps_are_those_of_torchvision() -> None:
    anchors, gt_boxes = grid_boxes(200, seed=6) * 1.37, grid_boxes(1, 12, seed=7) * 1.37
    _, overlap, _ = match_boxes(anchors, gt_boxes, torch.tensor([12]), False)
    truth, plain = (box_iou(gt_boxes[0].to(x), anchors.to(x)).amax(dim=0) for x in (torch.float64, torch.float32))
    assert_error_rule(overlap[0], truth, plain, torch.float32)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-30, 0.3, 1.0, 1e18, 3e36]))
def test_boxes_without_area_and_of_any_size(seed: int, scale: float) -> None:
    anchors, gt_boxes = grid_boxes(140, seed=seed, smallest=0) * scale, grid_boxes(1, 11, seed=seed + 1, smallest=0)
    check(anchors, gt_boxes * scale, torch.tensor([11]))


def test_boxes_that_are_not_finite() -> None:
    anchors, gt_boxes = grid_boxes(60, seed=8), grid_boxes(1, 6, seed=9)
    anchors[3, 1], anchors[40, 2], anchors[41, :2] = float("nan"), float("inf"), -float("inf")
    check(anchors, gt_boxes, torch.tensor([6]))
    gt_boxes[0, 2, 0] = float("nan")
    check(anchors, gt_boxes, torch.tensor([6]))


def test_boxes_of_infinite_height() -> None:
    anchors = torch.tensor([[0, 0, 10, float("inf")], [0, 0, 10, 10]])
    check(anchors, torch.tensor([[[20, 0, 30, float("inf")], [20, 0, 30, 10]]]), torch.tensor([2]))


def test_boxes_turned_inside_out() -> None:
    anchors = torch.tensor([[0.0, 10, 10, 0], [50, 50, 60, 60]])
    check(anchors, torch.tensor([[[100.0, 100, 110, 110], [50, 60, 60, 50]]]), torch.tensor([2]))
    check(anchors[:1], torch.tensor([[[100.0, 100, 110, 110], [60, 60, 50, 50]]]), torch.tensor([2]))


@pytest.mark.parametrize(("images", "number", "capacity"), [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_empty(images: int, number: int, capacity: int) -> None:
    counts = torch.full((images,), capacity)
    check(torch.zeros(number, 4), torch.zeros(images, capacity, 4), counts)
    check(torch.zeros(images, number, 4), torch.zeros(images, capacity, 4), counts, with_forced=False)


def test_the_public_function_on_views() -> None:
    """Columns of a larger tensor, every other row."""
    anchors = torch.cat([grid_boxes(80, seed=1), torch.zeros(80, 3)], dim=1)[::2, :4]
    gt_boxes, counts = grid_boxes(7, 2, seed=2).transpose(0, 1), torch.tensor([[7, 9], [4, 9]])[:, 0]
    seen = public_match_boxes(anchors, gt_boxes, counts)
    with use("reference"):
        for ours, true in zip(seen, public_match_boxes(anchors, gt_boxes, counts), strict=True):
            assert torch.equal(ours, true)

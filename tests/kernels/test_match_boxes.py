"""Matching, eager and reference: against torchvision's Matcher, by hand, and against each other: all is exact."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from kernels import match_boxes, use
from kernels.dispatch import Implementation
from kernels.eager import match_boxes as eager

IMPLEMENTATIONS: list[Implementation] = ["eager", "reference"]
NAN, INF = float("nan"), float("inf")


def grid_boxes(*shape: int, seed: int, smallest: int = 1) -> Tensor:
    """Boxes on a coarse grid: equal overlaps are frequent; with `smallest` 0 some have no area."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 8, (*shape, 2), generator=generator)
    size = torch.randint(smallest, 7, (*shape, 2), generator=generator)
    return torch.cat([low, low + size], dim=-1).float() * 10


def anchors_of_a_map(height: int, width: int) -> Tensor:
    """Three shapes at each place, row after row, of a map with stride 8."""
    y, x = torch.meshgrid(torch.arange(height) * 8.0, torch.arange(width) * 8.0, indexing="ij")
    cells = torch.tensor([[-22.0, -12, 22, 12], [-16, -16, 16, 16], [-12, -22, 12, 22]])
    return (torch.stack([x, y, x, y], dim=-1)[:, :, None] + cells).view(-1, 4)


def run(implementation: Implementation, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    with use(implementation):
        return match_boxes(*arguments, **options)


def assert_same(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.fixture(params=[16, 100, 4112])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The eager implementation with chunks of different lengths."""
    monkeypatch.setattr(eager, "_CHUNK", request.param)


@pytest.mark.parametrize("thresholds", [(0.7, 0.3), (0.5, 0.5)])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.usefixtures("chunk")
def test_matches_are_torchvisions(implementation: Implementation, seed: int, thresholds: tuple[float, float]) -> None:
    anchors, gt_boxes = grid_boxes(300, seed=seed), grid_boxes(12, seed=seed + 100)
    quality = box_iou(gt_boxes, anchors)
    # torchvision forces all anchors on ground truth that none overlaps.
    gt_boxes, quality = (each[quality.amax(dim=1) > 0] for each in (gt_boxes, quality))
    index, overlap, forced = run(implementation, anchors, gt_boxes[None], torch.tensor([len(gt_boxes)]))
    high, low = thresholds
    for allow in (False, True):
        expected = Matcher(high, low, allow_low_quality_matches=allow)(quality)
        positive = (overlap[0] >= high) | (forced[0] & allow)
        seen = torch.where(positive, index[0], torch.where(overlap[0] < low, -1, -2))
        assert torch.equal(seen, expected)
    assert torch.equal(overlap[0], quality.amax(dim=0))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_by_hand(implementation: Implementation) -> None:
    anchors = torch.tensor([[0, 0, 10, 10], [10, 0, 20, 10], [0, 20, 10, 30], [50, 50, 60, 60.0]])
    # The first object touches the two upper anchors equally, the second nearly covers the third anchor, no anchor
    # reaches the third; the fourth is the first again; the last does not count.
    objects = [[5, 0, 15, 10], [0, 20, 10, 29], [200, 200, 210, 210], [5, 0, 15, 10], [50, 50, 60, 60.0]]
    index, overlap, forced = run(implementation, anchors, torch.tensor([objects]), torch.tensor([4]))
    assert index.tolist() == [[0, 0, 1, 0]]
    assert torch.equal(overlap, torch.tensor([[1 / 3, 1 / 3, 0.9, 0]]))
    assert forced.tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_forced_match_need_not_be_of_the_best_ground_truth(implementation: Implementation) -> None:
    """Detectron2's and torchvision's rule: the second object's best anchor is nearer to the first object."""
    anchors = torch.tensor([[0, 0, 10, 10.0], [0, 0, 2, 2]])
    objects = torch.tensor([[[0, 0, 10, 10], [0, 0, 10, 4.0]]])
    index, _, forced = run(implementation, anchors, objects, torch.tensor([2]))
    assert index.tolist() == [[0, 1]]
    assert forced.tolist() == [[True, False]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_ground_truth(implementation: Implementation) -> None:
    anchors = grid_boxes(5, seed=0)
    for gt_boxes in (grid_boxes(2, 3, seed=1), torch.zeros(2, 0, 4)):
        index, overlap, forced = run(implementation, anchors, gt_boxes, torch.zeros(2, dtype=torch.int32))
        assert torch.equal(index, torch.zeros(2, 5, dtype=torch.int64))
        assert torch.equal(overlap, torch.full((2, 5), -1.0))
        assert not forced.any()


@pytest.mark.parametrize(("images", "number"), [(0, 5), (2, 0), (0, 0)])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_empty(implementation: Implementation, images: int, number: int) -> None:
    for anchors in (torch.zeros(number, 4), torch.zeros(images, number, 4)):
        seen = run(implementation, anchors, torch.zeros(images, 3, 4), torch.full((images,), 3))
        assert all(each.shape == (images, number) for each in seen)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.usefixtures("chunk")
def test_eager_is_the_reference(dtype: torch.dtype, shared: bool) -> None:
    anchors = torch.stack([anchors_of_a_map(12, 15), anchors_of_a_map(12, 15).roll(77, 0)]).to(dtype)
    gt_boxes, counts = (grid_boxes(2, 9, seed=3) * 1.37).to(dtype), torch.tensor([9, 4])
    arguments = (anchors[0] if shared else anchors, gt_boxes, counts)
    seen = run("eager", *arguments)
    assert_same(seen, run("reference", *arguments))
    assert seen[1].dtype == torch.promote_types(dtype, torch.float32)
    assert seen[2].any()
    assert not run("eager", *arguments, with_forced=False)[2].any()
    assert_same(run("eager", *arguments, with_forced=False)[:2], seen[:2])


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-30, 1e-22, 0.3, 1.0, 1e18, 3e36]),
    odd=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 3), st.sampled_from([NAN, INF, -INF, 0.0])), max_size=3),
)
def test_eager_is_the_reference_on_anything(seed: int, scale: float, odd: list[tuple[int, int, float]]) -> None:
    """No area, underflow and overflow, NaN and infinity: what is left out because it cannot overlap is 0 indeed."""
    boxes = grid_boxes(60, seed=seed, smallest=0) * scale
    for row, column, value in odd:
        boxes[row, column] = value
    arguments = (boxes[:50], boxes[None, 50:], torch.tensor([10]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "_CHUNK", 8)
        assert_same(run("eager", *arguments), run("reference", *arguments))


def test_boxes_turned_inside_out() -> None:
    """Areas below 0 can cancel: 0 / 0 where nothing overlaps."""
    anchors = torch.tensor([[0.0, 10, 10, 0], [50, 50, 60, 60]])
    gt_boxes = torch.tensor([[[100.0, 100, 110, 110], [50, 60, 60, 50]]])
    arguments = (anchors, gt_boxes, torch.tensor([2]))
    assert_same(run("eager", *arguments), run("reference", *arguments))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_box_that_is_no_box_harms_no_other(implementation: Implementation, value: float) -> None:
    anchors = torch.tensor([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 60, 10.0]])
    objects = torch.tensor([[[40, 0, 50, 9], [60, 0, 60, 10], [0, 0, 10, 8.0]]])
    for corner in range(4):
        spoilt_anchors, spoilt_objects = anchors.clone(), objects.clone()
        spoilt_anchors[1, corner] = value
        spoilt_objects[0, 0, corner] = value
        index, overlap, forced = run(implementation, spoilt_anchors, spoilt_objects, torch.tensor([3]))
        assert index.tolist() == [[2, 0, 0, 0]]
        assert torch.equal(overlap, torch.tensor([[0.8, 0, 0, 0]]))
        assert forced.tolist() == [[True, False, False, False]]


def test_boxes_of_infinite_height() -> None:
    """They overlap by 0 * infinity where they lie side by side."""
    anchors = torch.tensor([[0, 0, 10, INF], [0, 0, 10, 10]])
    gt_boxes = torch.tensor([[[20, 0, 30, INF], [20, 0, 30, 10]]])
    arguments = (anchors, gt_boxes, torch.tensor([2]))
    assert_same(run("eager", *arguments), run("reference", *arguments))


def test_no_gradient() -> None:
    anchors = grid_boxes(5, seed=0).requires_grad_()
    assert not run("eager", anchors, grid_boxes(1, 3, seed=1), torch.tensor([3]))[1].requires_grad


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"anchors": torch.zeros(5, 5)}, r"anchors is \(5, 5\)"),
        ({"anchors": torch.zeros(3, 5, 4)}, r"gt_boxes is \(2, 3, 4\) .* must be 3 x G x 4"),
        ({"anchors": torch.zeros(4)}, r"anchors is \(4,\) .* must be N x 4 or B x N x 4"),
        ({"anchors": torch.zeros(5, 4, dtype=torch.int64)}, "anchors is .* torch.int64"),
        ({"gt_boxes": torch.zeros(3, 4)}, r"gt_boxes is \(3, 4\)"),
        ({"gt_boxes": torch.zeros(2, 3, 4, dtype=torch.int32)}, "gt_boxes is .* torch.int32"),
        ({"gt_boxes": torch.zeros(2, 3, 4, device="meta")}, "gt_boxes is on meta"),
        ({"gt_counts": torch.zeros(3, dtype=torch.int64)}, r"gt_counts is \(3,\)"),
        ({"gt_counts": torch.zeros(2)}, "gt_counts is .* torch.float32"),
        ({"gt_counts": torch.tensor([0, 4])}, "gt_counts holds 4; it must be from 0 to 3"),
        ({"gt_counts": torch.tensor([-1, 0])}, "gt_counts holds -1"),
    ],
)
def test_wrong_arguments(changed: dict[str, Any], message: str) -> None:
    arguments = {
        "anchors": torch.zeros(5, 4),
        "gt_boxes": torch.zeros(2, 3, 4),
        "gt_counts": torch.tensor([1, 2]),
    }
    with use("eager"), pytest.raises(ValueError, match=message):
        match_boxes(**{**arguments, **changed})

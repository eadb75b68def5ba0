"""Non-maximum suppression, eager and reference, against torchvision: selections are exact."""

from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import batched_nms, nms, segmented_nms, use
from kernels.dispatch import Implementation
from kernels.nms import _of_like_size
from kernels.rounding import float32_at_most

IMPLEMENTATIONS: list[Implementation] = ["eager", "reference"]
NAN, INF = float("nan"), float("inf")


def random_boxes(number: int, seed: int = 0, segments: int | None = None) -> tuple[Tensor, Tensor]:
    """Boxes on a small grid with few different scores: many equal scores, boxes and overlaps."""
    generator = torch.Generator().manual_seed(seed)
    shape = (number,) if segments is None else (segments, number)
    corner = torch.randint(0, 20, (*shape, 2), generator=generator)
    size = torch.randint(0, 10, (*shape, 2), generator=generator)
    scores = torch.randint(0, 20, shape, generator=generator) / 20
    return torch.cat([corner, corner + size], -1).float(), scores


def greedy(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """torchvision.ops.nms on the boxes whose score is more than -inf, in float32 at least."""
    present = torch.nonzero(scores > -INF)[:, 0]
    compute = torch.promote_types(boxes.dtype, torch.float32)
    return present[torchvision.ops.nms(boxes[present].to(compute), scores[present].to(compute), iou_threshold)]


def check_segments(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_keep: int,
    counts: Tensor | None,
    implementation: Implementation,
) -> None:
    with use(implementation):
        keep, kept = segmented_nms(boxes, scores, iou_threshold, max_keep, counts)
    assert keep.dtype == kept.dtype == torch.int64
    assert keep.shape == (len(boxes), max_keep)
    for segment in range(len(boxes)):
        size = boxes.shape[1] if counts is None else int(counts[segment])
        expected = greedy(boxes[segment, :size], scores[segment, :size], iou_threshold)[:max_keep]
        assert kept[segment] == len(expected)
        assert torch.equal(keep[segment, : len(expected)], expected)
        assert (keep[segment, len(expected) :] == -1).all()


coordinate = st.integers(0, 12)
box = st.tuples(coordinate, coordinate, st.integers(0, 8), st.integers(0, 8), st.integers(0, 4), st.integers(-3, 3))
box_lists = st.lists(box, max_size=40)
thresholds = st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.6, 0.7, 1.0])


def tensors(drawn: list[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, of which some have no area, scores with ties, and classes."""
    x, y, width, height, score, label = torch.tensor(drawn, dtype=torch.float32).reshape(-1, 6).unbind(1)
    return torch.stack([x, y, x + width, y + height], 1), score / 4, label.long()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(box_lists, thresholds)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nms_is_torchvisions(implementation: Implementation, drawn: list[tuple[int, ...]], threshold: float) -> None:
    boxes, scores, _ = tensors(drawn)
    with use(implementation):
        kept = nms(boxes, scores, threshold)
    assert torch.equal(kept, torchvision.ops.nms(boxes, scores, threshold))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(box_lists, thresholds)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_batched_nms_is_nms_of_each_class(
    implementation: Implementation, drawn: list[tuple[int, ...]], threshold: float
) -> None:
    boxes, scores, classes = tensors(drawn)
    with use(implementation):
        kept = batched_nms(boxes, scores, classes, threshold).tolist()
    expected: list[int] = []
    for label in classes.unique():
        members = torch.nonzero(classes == label)[:, 0]
        expected += members[torchvision.ops.nms(boxes[members], scores[members], threshold)].tolist()
    assert kept == sorted(expected, key=lambda index: (-scores[index].item(), index))


@pytest.mark.parametrize("sizes", [[3_000, 2_900, 40, 30, 20, 10, 9, 8, 1, 1], [1] * 50 + [2_500], [700] * 3])
def test_classes_of_unlike_sizes(sizes: list[int]) -> None:
    boxes, scores = random_boxes(sum(sizes))
    generator = torch.Generator().manual_seed(1)
    boxes = 20 * boxes + torch.randint(0, 10, boxes.shape, generator=generator)
    order = torch.randperm(len(boxes), generator=generator)
    idxs = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[order]
    with use("eager"):
        kept = batched_nms(boxes, scores, idxs, 0.3)
    chosen = [
        members[torchvision.ops.nms(boxes[members], scores[members], 0.3)]
        for members in (torch.nonzero(idxs == each)[:, 0] for each in range(len(sizes)))
    ]
    expected = torch.cat(chosen).sort().values
    assert torch.equal(kept, expected[torch.sort(scores[expected], descending=True, stable=True).indices])


@pytest.mark.parametrize("sizes", [[20_000] + [1] * 90, [2_000] * 5, [20_000 // each for each in range(1, 81)]])
def test_padding_is_at_most_half(sizes: list[int]) -> None:
    groups = list(_of_like_size(sizes))
    assert [size for group, _ in groups for size in sizes[group]] == sizes
    for group, longest in groups:
        own = sizes[group]
        assert longest == max(own)
        assert longest * len(own) <= max(2 * sum(own), 1 << 14)
    assert len(groups) <= 4


@pytest.mark.parametrize("number", [1, 127, 128, 129, 700])
def test_around_the_size_of_a_block(number: int) -> None:
    for threshold in (0.05, 0.5, 0.9):
        boxes, scores = random_boxes(number)
        with use("eager"):
            assert torch.equal(nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


def test_a_long_chain_of_suppression() -> None:
    """Each box overlaps its neighbours only, so that each choice waits for the one before."""
    left = torch.arange(300.0) * 4
    boxes = torch.stack([left, torch.zeros(300), left + 10, torch.full((300,), 10.0)], 1)
    for scores in (torch.linspace(1, 0.1, 300), torch.linspace(0.1, 1, 300), torch.ones(300)):
        with use("eager"):
            assert torch.equal(nms(boxes, scores, 0.3), torchvision.ops.nms(boxes, scores, 0.3))


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("places", [1, 4])
def test_crowds(places: int, threshold: float) -> None:
    """Of so many boxes at few places that the best are compared with the others first, some not usable."""
    generator = torch.Generator().manual_seed(places)
    x, y = 100 * torch.rand(2, places, generator=generator)[:, torch.arange(2_000) % places]
    corner = torch.stack([x, y], 1) + (10 * torch.rand(2_000, 2, generator=generator)).round()
    boxes = torch.cat([corner, corner + 50 + (10 * torch.rand(2_000, 2, generator=generator)).round()], 1)
    boxes[::100] = torch.tensor([0.0, 0, INF, INF])
    boxes[1::100, 3] = NAN
    boxes[2::100, 2] = 0
    scores = torch.randint(0, 500, (2_000,), generator=generator) / 500
    check_segments(torch.stack([boxes, 9 * boxes]), scores.repeat(2, 1), threshold, 2_000, None, "eager")


def test_a_crowd_that_suppresses_nothing() -> None:
    y1 = torch.arange(1_000.0)[torch.randperm(1_000, generator=torch.Generator().manual_seed(0))]
    boxes = torch.stack([torch.zeros_like(y1), y1, torch.full_like(y1, 50.0), y1 + 1], 1)
    with use("eager"):
        assert torch.equal(nms(boxes, y1, 0.5), torch.argsort(y1, descending=True))


@pytest.mark.parametrize(("spots", "alone"), [(1, 0), (2, 0), (9, 100)])
def test_crowds_need_no_pairs(spots: int, alone: int) -> None:
    """20,000 boxes at few spots, the best first that overlap with nothing: up to 200 million pairs, 3 GB of indices."""
    spot = torch.arange(20_000) * spots // 20_000
    boxes = torch.tensor([0.0, 0, 10, 10]) + 100 * spot[:, None]
    boxes[:alone] = torch.tensor([0.0, -50, 10, -40]) + 20 * torch.arange(alone)[:, None] * torch.tensor([1, 0, 1, 0])
    expected = [*range(alone), *(int((spot[alone:] == each).nonzero()[0]) + alone for each in range(spots))]
    with use("eager"):
        assert nms(boxes, torch.linspace(1, 0.5, 20_000), 0.5).tolist() == expected


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_boxes_near_the_largest_number(implementation: Implementation) -> None:
    boxes = torch.tensor([[5.78e37, 0, -3.54e37, 2], [2.339e38, 1, 2.647e38, 3], [2.339e38, 1, 2.647e38, 3]])
    with use(implementation):
        assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.1).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dtypes(implementation: Implementation, dtype: torch.dtype) -> None:
    boxes, scores = random_boxes(80)
    boxes, scores = (boxes * 37.3).to(dtype), scores.to(dtype)  # areas that a half could not hold
    with use(implementation):
        assert torch.equal(nms(boxes, scores, 0.3), greedy(boxes, scores, 0.3))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_classes_never_mix_however_far_their_boxes(implementation: Implementation) -> None:
    """Classes kept apart by shifted coordinates would lose the half pixel at 3e7."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.5, 0, 1.5, 1], [0.5, 0, 1.5, 1], [3e7, 3e7, 3.1e7, 3.1e7]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    with use(implementation):
        assert batched_nms(boxes, scores, torch.tensor([5, 5, -2, 9]), 0.5).tolist() == [0, 1, 2, 3]
        assert batched_nms(boxes, scores, torch.tensor([5, -2, -2, 9]), 0.5).tolist() == [0, 1, 3]


@pytest.mark.parametrize("max_keep", [1, 7, 30, 200])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_segments_stop_at_max_keep(implementation: Implementation, max_keep: int) -> None:
    check_segments(*random_boxes(60, segments=3), 0.4, max_keep, None, implementation)


def test_max_keep_is_reached_within_and_at_the_end_of_a_block() -> None:
    boxes, scores = random_boxes(400, segments=2)
    scores[1] = scores[1].sort().values
    for max_keep in (5, 60, 128, 300):
        check_segments(boxes, scores, 0.95, max_keep, None, "eager")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_counts_and_scores_that_take_no_part(implementation: Implementation) -> None:
    boxes, scores = random_boxes(50, segments=5)
    scores[0, ::3] = -INF
    scores[1, 5:9] = NAN
    scores[2] = -INF
    scores[3, 7] = INF
    boxes[4, :5] = NAN
    scores[4, :5] = NAN
    check_segments(boxes, scores, 0.5, 50, None, implementation)
    check_segments(boxes, scores, 0.5, 50, torch.tensor([40, 0, 50, 8, 5]), implementation)
    check_segments(boxes, scores, 0.5, 3, torch.tensor([1, 2, 3, 4, 5], dtype=torch.int32), implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_overlap_that_is_not_a_number_suppresses_nothing(implementation: Implementation) -> None:
    boxes = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [NAN, 0, 9, 9], [0, 0, INF, INF], [0, 0, INF, INF]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    with use(implementation):
        assert nms(boxes, scores, 0.5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scores_that_are_not_finite(implementation: Implementation) -> None:
    """All take part in `nms`, NaN as the highest; in segments -inf and NaN are absent, see above."""
    boxes, _ = random_boxes(24)
    scores = torch.tensor([0.5, INF, NAN, -INF, NAN, -0.0, 0.0, INF]).repeat(3)
    with use(implementation):
        assert torch.equal(nms(boxes, scores, 0.3), torchvision.ops.nms(boxes, scores, 0.3))
        kept = batched_nms(boxes, scores, torch.arange(24) % 2, 0.3)
    each = [torch.arange(first, 24, 2) for first in (0, 1)]
    wanted = torch.cat([own[torchvision.ops.nms(boxes[own], scores[own], 0.3)] for own in each]).sort().values
    assert torch.equal(kept, wanted[torch.sort(scores[wanted], descending=True, stable=True).indices])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_boxes_apart_in_both_directions_do_not_overlap(implementation: Implementation) -> None:
    """Tiny, far from the origin: a width and a height below zero must not make an area above it."""
    corners = torch.tensor([[0.0, 0.0, 8.0, 8.0], [10.0, 10.0, 18.0, 18.0], [10.0, -10.0, 18.0, -2.0]])
    boxes = 1000 + corners / 512  # exact in float32
    with use(implementation):
        assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.0).tolist() == [0, 1, 2]


@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 0.5, 0.7, 1.0])
def test_a_threshold_is_rounded_down(value: float) -> None:
    """Whatever the default dtype is: the next float32 is above it."""
    torch.set_default_dtype(torch.float64)
    try:
        rounded = float32_at_most(value)
    finally:
        torch.set_default_dtype(torch.float32)
    here = torch.tensor(rounded, dtype=torch.float32)
    assert here.item() == rounded <= value
    assert torch.nextafter(here, torch.tensor(2.0)).item() > value


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_idempotent(implementation: Implementation) -> None:
    boxes, scores = random_boxes(100)
    with use(implementation):
        kept = nms(boxes, scores, 0.4)
        assert 1 < len(kept) < 100
        assert torch.equal(nms(boxes[kept], scores[kept], 0.4), torch.arange(len(kept)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_empty(implementation: Implementation) -> None:
    none = torch.zeros(0, 4), torch.zeros(0)
    with use(implementation):
        assert nms(*none, 0.5).shape == batched_nms(*none, torch.zeros(0, dtype=torch.int64), 0.5).shape == (0,)
        for segments, number, max_keep in ((0, 5, 3), (2, 0, 3), (2, 5, 0)):
            keep, kept = segmented_nms(torch.zeros(segments, number, 4), torch.zeros(segments, number), 0.5, max_keep)
            assert keep.tolist() == [[-1] * max_keep] * segments
            assert kept.tolist() == [0] * segments
        absent = torch.full((2, 5), -INF)
        for scores, counts in ((absent, None), (absent * NAN, None), (-absent, torch.tensor([0, 0]))):
            keep, kept = segmented_nms(torch.ones(2, 5, 4), scores, 0.5, 3, counts)
            assert keep.tolist() == [[-1] * 3] * 2
            assert kept.tolist() == [0, 0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_inputs_of_any_strides(implementation: Implementation) -> None:
    boxes, scores = random_boxes(40)
    strided = torch.empty(4, 80)[:, ::2].t().copy_(boxes)
    with use(implementation):
        expected = nms(boxes, scores, 0.4)
        assert torch.equal(nms(strided, torch.stack([scores, scores], 1)[:, 1], 0.4), expected)


@pytest.mark.parametrize(
    ("function", "changed", "message"),
    [
        (nms, {"boxes": torch.zeros(3, 5)}, r"boxes is \(3, 5\)"),
        (nms, {"boxes": torch.zeros(3, 4, dtype=torch.int32)}, "boxes .* torch.int32"),
        (nms, {"scores": torch.zeros(2)}, r"scores is \(2,\)"),
        (nms, {"scores": torch.zeros(3, dtype=torch.int64)}, "scores .* torch.int64"),
        (nms, {"scores": torch.zeros(3, device="meta")}, "scores is on meta"),
        (nms, {"iou_threshold": 1.5}, "iou_threshold is 1.5"),
        (nms, {"iou_threshold": NAN}, "iou_threshold is nan"),
        (batched_nms, {"idxs": torch.zeros(2, dtype=torch.int64)}, r"idxs is \(2,\)"),
        (batched_nms, {"idxs": torch.zeros(3)}, "idxs is .* torch.float32"),
        (batched_nms, {"idxs": torch.zeros(3, dtype=torch.int64, device="meta")}, "idxs is on meta"),
        (segmented_nms, {"max_keep": -1}, "max_keep is -1"),
        (segmented_nms, {"counts": torch.zeros(3, dtype=torch.int64)}, r"counts is \(3,\)"),
        (segmented_nms, {"counts": torch.zeros(1)}, "counts is .* torch.float32"),
        (segmented_nms, {"counts": torch.zeros(1, dtype=torch.int64, device="meta")}, "counts is on meta"),
    ],
)
def test_wrong_arguments(function: Any, changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"boxes": torch.zeros(3, 4), "scores": torch.zeros(3), "iou_threshold": 0.5}
    if function is batched_nms:
        arguments["idxs"] = torch.zeros(3, dtype=torch.int64)
    if function is segmented_nms:
        arguments = {"boxes": torch.zeros(1, 3, 4), "scores": torch.zeros(1, 3), "iou_threshold": 0.5, "max_keep": 3}
    with use("eager"), pytest.raises(ValueError, match=message):
        function(**{**arguments, **changed})

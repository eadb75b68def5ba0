"""The NMS kernels, interpreted, against torchvision, segment after segment: selections are exact."""

import pytest
import torch
import torchvision
from torch import Tensor

from kernels.gpu import nms as module
from kernels.gpu import nms_at_once

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

INF = float("inf")


@pytest.fixture(autouse=True, params=["at once", "sorted"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """In which form segments are done that both have room for."""
    if request.param == "sorted":
        monkeypatch.setattr(nms_at_once, "MOST_BOXES", 0)
    return str(request.param)


def segmented_nms(
    boxes: Tensor, scores: Tensor, threshold: float, max_keep: int, counts: Tensor | None = None, every: bool = False
) -> tuple[Tensor, Tensor]:
    return module.segmented_nms(boxes, scores, threshold, max_keep, counts, every)


def expected(
    boxes: Tensor, scores: Tensor, threshold: float, max_keep: int, counts: Tensor | None, every: bool
) -> tuple[Tensor, Tensor]:
    """torchvision.ops.nms on each segment's boxes that take part, in float32 for halves."""
    segments, number = scores.shape
    keep = torch.full((segments, max_keep), -1)
    kept = torch.zeros(segments, dtype=torch.int64)
    compute = torch.promote_types(boxes.dtype, torch.float32)
    for segment in range(segments):
        inside = torch.arange(number) < (number if counts is None else counts[segment])
        chosen = torch.nonzero(inside & (every | (scores[segment] > -INF)))[:, 0]
        some = torchvision.ops.nms(boxes[segment, chosen].to(compute), scores[segment, chosen].to(compute), threshold)
        some = chosen[some][:max_keep]
        keep[segment, : len(some)], kept[segment] = some, len(some)
    return keep, kept


def check(
    boxes: Tensor, scores: Tensor, threshold: float, max_keep: int, counts: Tensor | None = None, every: bool = False
) -> None:
    keep, kept = segmented_nms(boxes, scores, threshold, max_keep, counts, every)
    true_keep, true_kept = expected(boxes, scores, threshold, max_keep, counts, every)
    assert keep.dtype == kept.dtype == torch.int64
    assert torch.equal(kept, true_kept)
    assert torch.equal(keep, true_keep)


def integer_boxes(segments: int, number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes on a small grid with few different scores: many equal scores, boxes and overlaps."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 20, (segments, number, 2), generator=generator)
    size = torch.randint(1, 10, (segments, number, 2), generator=generator)
    scores = torch.randint(0, 20, (segments, number), generator=generator) / 20
    return torch.cat([corner, corner + size], 2).float(), scores


@pytest.mark.parametrize("number", [1, 2, 63, 64, 65, 130, 200])
def test_around_the_size_of_a_word(number: int) -> None:
    check(*integer_boxes(2, number), 0.5, number)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.2, 0.3, 0.6, 0.7, 0.9, 1.0])
def test_overlaps_equal_to_the_threshold(threshold: float) -> None:
    check(*integer_boxes(1, 90, seed=1), threshold, 90)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_overlap_of_seven_tenths_is_not_above_it(dtype: torch.dtype) -> None:
    """0.7 is above its own float32."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 7]]], dtype=dtype)
    scores = torch.tensor([[0.9, 0.8]])
    assert segmented_nms(boxes, scores, 0.7, 2)[1].item() == 2
    assert segmented_nms(boxes, scores, 0.6999999, 2)[1].item() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    boxes, scores = integer_boxes(2, 70)
    check((boxes * 1.3).to(dtype), scores.to(dtype), 0.3, 70)


def test_half_boxes_beyond_a_thousand_pixels() -> None:
    boxes = torch.tensor([[[2000.0, 2000, 2400, 2400], [2002, 2000, 2400, 2400], [2300, 2300, 2900, 2900]]])
    check(boxes.half(), torch.tensor([[0.5, 0.9, 0.7]]).half(), 0.5, 3)


@pytest.mark.parametrize("max_keep", [1, 7, 64, 65, 300])
def test_stops_at_max_keep(max_keep: int) -> None:
    check(*integer_boxes(1, 150), 0.4, max_keep)


def test_counts_and_scores_that_take_no_part() -> None:
    boxes, scores = integer_boxes(4, 80)
    scores[0, ::3] = -INF
    scores[1, 5:9] = float("nan")
    scores[2] = -INF
    scores[3, 7] = INF
    scores[1, 12:60:7] = INF  # in the turn of NaN where that takes part
    scores[1, 13:60:7] = -0.0
    for every in (False, True):
        check(boxes, scores, 0.5, 80, None, every)
        check(boxes, scores, 0.5, 80, torch.tensor([40, 0, 80, 8]), every)


def test_counts_that_cannot_be() -> None:
    """Of the launcher, as on a GPU: each is taken to be the nearest that can, and nothing outside is read."""
    boxes, scores = integer_boxes(3, 40)
    for every in (False, True):
        seen = segmented_nms(boxes, scores, 0.5, 40, torch.tensor([41, -1, 2**31 - 1]), every)
        wanted = expected(boxes, scores, 0.5, 40, torch.tensor([40, 0, 40]), every)
        assert torch.equal(seen[0], wanted[0])
        assert torch.equal(seen[1], wanted[1])


def test_nan_overlap_suppresses_nothing() -> None:
    boxes = torch.tensor([[[1.0, 1, 1, 1], [1, 1, 1, 1], [5, 5, 5, 9], [5, 5, 5, 9]]])
    check(boxes, torch.tensor([[0.9, 0.8, 0.7, 0.6]]), 0.5, 4)
    boxes[0, 0] = float("nan")
    boxes[0, 2] = float("inf")
    assert segmented_nms(boxes, torch.tensor([[0.9, 0.8, 0.7, 0.6]]), 0.5, 4)[1].item() == 4


def test_a_long_chain_of_suppression() -> None:
    """Each box overlaps its neighbours only, so that a word settles one box a round."""
    left = torch.arange(66.0) * 4
    boxes = torch.stack([left, torch.zeros(66), left + 10, torch.full((66,), 10.0)], 1)[None]
    check(boxes, torch.linspace(1, 0.1, 66)[None], 0.3, 66)
    check(boxes, torch.linspace(0.1, 1, 66)[None], 0.3, 66)


@pytest.mark.parametrize(("segments", "number", "max_keep"), [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_empty(segments: int, number: int, max_keep: int) -> None:
    keep, kept = segmented_nms(torch.zeros(segments, number, 4), torch.zeros(segments, number), 0.5, max_keep)
    assert keep.shape == (segments, max_keep)
    assert torch.equal(keep, torch.full_like(keep, -1))
    assert torch.equal(kept, torch.zeros(segments, dtype=torch.int64))


def test_idempotent() -> None:
    boxes, scores = integer_boxes(1, 120)
    keep, kept = segmented_nms(boxes, scores, 0.4, 120)
    chosen = keep[0, : kept[0]]
    again, count = segmented_nms(boxes[:, chosen], scores[:, chosen], 0.4, 120)
    assert torch.equal(count, kept)
    assert torch.equal(again[0, : count[0]], torch.arange(kept.item()))

"""Decoding boxes, eager and reference: torchvision's BoxCoder, clipping and filters, and cases by hand."""

import math
from typing import Any

import pytest
import torch
from offsets_to_decode import SIZES, WEIGHTS, check, some_anchors, some_offsets, some_scores
from torch import Tensor

from kernels import decode_boxes, use
from kernels.dispatch import Implementation

IMPLEMENTATIONS: list[Implementation] = ["eager", "reference"]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_boxes_and_what_is_left_are_torchvisions(
    implementation: Implementation, dtype: torch.dtype, weights: tuple[float, float, float, float]
) -> None:
    with use(implementation):
        check(dtype, weights)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_by_hand(implementation: Implementation) -> None:
    anchors = torch.tensor([[0.0, 0, 10, 20], [10, 10, 12, 14], [0, 0, 10, 10], [50, 5, 60, 15]])
    # Moved and doubled in width; as large as can be; its right half moved off the image; wholly off.
    offsets = torch.tensor([[[1.0, 0.25, math.log(2), 0], [0, 0, 99, 99], [-0.5, 0, 0, 0], [0, 2, 0, 0]]])
    with use(implementation):
        boxes, scores = decode_boxes(
            offsets, anchors, torch.tensor([[0.9, 0.8, 0.7, 0.6]]), torch.tensor([[25, 200]]), min_size=1.0
        )
    expected = [[5, 5, 25, 25], [0, 0, 11 + 62.5, 25], [0, 0, 5, 10], [50, 25, 60, 25.0]]
    torch.testing.assert_close(boxes, torch.tensor([expected]), rtol=1e-6, atol=0)
    assert torch.equal(scores, torch.tensor([[0.9, 0.8, 0.7, -INF]]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_which_side_the_limits_are_on(implementation: Implementation) -> None:
    """As torchvision: a side of min_size stays, a score of the threshold goes."""
    anchors = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.5], [0, 0, 2, 2]])
    with use(implementation):
        _, scores = decode_boxes(
            torch.zeros(1, 3, 4), anchors, torch.tensor([[0.75, 0.75, 0.5]]), SIZES[:1], min_size=2, score_threshold=0.5
        )
        assert scores.tolist() == [[0.75, -INF, -INF]]
        _, scores = decode_boxes(torch.zeros(1, 3, 4), anchors * 0, torch.tensor([[0.75, -5, -INF]]), SIZES[:1])
        assert scores.tolist() == [[0.75, -5, -INF]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_places_beyond_the_count_are_left_out(implementation: Implementation) -> None:
    arguments = some_offsets(2, 3, 5), torch.tensor([1.0, 1, 30, 30]).expand(5, 4), some_scores(2, 3, 5), SIZES
    with use(implementation):
        boxes, scores = decode_boxes(*arguments)
        again, counted = decode_boxes(*arguments, counts=torch.tensor([0, 3], dtype=torch.int32))
    assert torch.equal(boxes, again)
    assert (counted[0] == -INF).all()
    assert (counted[1, :, 3:] == -INF).all()
    assert torch.equal(counted[1, :, :3], scores[1, :, :3])
    assert (scores > -INF).any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_is_not_a_number_is_left_out(implementation: Implementation) -> None:
    offsets, anchors, scores = torch.zeros(1, 7, 4), torch.tensor([[1.0, 2, 30, 40]]).repeat(7, 1), torch.ones(1, 7)
    offsets[0, 0, 0], offsets[0, 1, 3], anchors[2, 1], scores[0, 3], offsets[0, 4, 1] = NAN, NAN, NAN, NAN, INF
    offsets[0, 5, 2] = -INF
    with use(implementation):
        boxes, kept = decode_boxes(offsets, anchors, scores, SIZES[:1], min_size=1.0)
    assert kept.tolist() == [[-INF] * 6 + [1.0]]
    assert boxes[0, 6].tolist() == [1, 2, 30, 40]
    assert boxes[0, 4].tolist() == [1, 60, 30, 60]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_anchors_broadcast_and_views_are_taken(implementation: Implementation) -> None:
    offsets, scores, anchors = some_offsets(2, 7, 3), some_scores(2, 7, 3), some_anchors(7)

    def results(offsets: Tensor, anchors: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return decode_boxes(offsets, anchors, scores, SIZES.float(), min_size=1.0)

    with use(implementation):
        whole = results(
            offsets.transpose(1, 2).contiguous(),
            anchors[:, None].expand(2, 3, 7, 4).contiguous(),
            scores.transpose(1, 2).contiguous(),
        )
        views = results(offsets.transpose(1, 2), anchors[:, None], scores.transpose(1, 2))
        assert all(torch.equal(first, second) for first, second in zip(whole, views, strict=True))
        for segment in range(3):
            boxes, kept = results(offsets[:, :, segment], anchors, scores[:, :, segment])
            torch.testing.assert_close(boxes, whole[0][:, segment], rtol=1e-6, atol=1e-4)
            assert torch.equal(kept, whole[1][:, segment])
        shared = results(offsets.transpose(1, 2), anchors[0], scores.transpose(1, 2))
        torch.testing.assert_close(shared[0][0], whole[0][0], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (2, 0, 5), (2, 3, 0)])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_empty(implementation: Implementation, shape: tuple[int, ...]) -> None:
    with use(implementation):
        boxes, scores = decode_boxes(
            torch.zeros(*shape, 4), torch.zeros(shape[-1], 4), torch.zeros(shape), torch.zeros(shape[0], 2)
        )
    assert (boxes.shape, scores.shape) == ((*shape, 4), shape)


def test_no_gradient() -> None:
    boxes, scores = decode_boxes(some_offsets(2, 5).requires_grad_(), some_anchors(5), some_scores(2, 5), SIZES)
    assert not boxes.requires_grad
    assert not scores.requires_grad


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"offsets": torch.zeros(2, 5, 5)}, r"offsets is \(2, 5, 5\)"),
        ({"offsets": torch.zeros(5, 4)}, r"offsets is \(5, 4\)"),
        ({"offsets": torch.zeros(2, 5, 4, dtype=torch.int64)}, "offsets is .* torch.int64"),
        ({"anchors": torch.zeros(6, 4)}, r"anchors is \(6, 4\) .* must broadcast to \(2, 5, 4\)"),
        ({"anchors": torch.zeros(3, 5, 4)}, r"anchors is \(3, 5, 4\)"),
        ({"anchors": torch.zeros(1, 2, 5, 4)}, r"anchors is \(1, 2, 5, 4\)"),
        ({"anchors": torch.zeros(5, 1)}, r"anchors is \(5, 1\)"),
        ({"anchors": torch.zeros(5, 4, dtype=torch.int32)}, "anchors is .* torch.int32"),
        ({"scores": torch.zeros(2, 6)}, r"scores is \(2, 6\)"),
        ({"scores": torch.zeros(2, 5, dtype=torch.int64)}, "scores is .* torch.int64"),
        ({"image_sizes": torch.zeros(3, 2)}, r"image_sizes is \(3, 2\)"),
        ({"image_sizes": torch.zeros(2, 2, device="meta")}, "image_sizes is on meta"),
        ({"counts": torch.zeros(3, dtype=torch.int64)}, r"counts is \(3,\)"),
        ({"counts": torch.zeros(2)}, "counts is .* torch.float32"),
        ({"weights": (1.0, 1.0, 0.0, 1.0)}, "weights is"),
        ({"weights": (1.0, 1.0)}, "weights is"),
    ],
)
def test_wrong_arguments(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "offsets": torch.zeros(2, 5, 4),
        "anchors": torch.zeros(5, 4),
        "scores": torch.zeros(2, 5),
        "image_sizes": SIZES,
    }
    with use("eager"), pytest.raises(ValueError, match=message):
        decode_boxes(**{**arguments, **changed})

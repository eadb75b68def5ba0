"""The decoding kernel, interpreted, against torchvision's steps and the reference."""

import pytest
import torch
from offsets_to_decode import SIZES, WEIGHTS, check, some_anchors, some_offsets, some_scores

from kernels.gpu.decode_boxes import decode_boxes
from kernels.reference.decode_boxes import decode_boxes as reference

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_boxes_and_what_is_left_are_torchvisions(
    dtype: torch.dtype, weights: tuple[float, float, float, float]
) -> None:
    check(dtype, weights)


@pytest.mark.parametrize("number", [1, 127, 128, 129])
def test_around_the_size_of_a_block(number: int) -> None:
    check(torch.float32, WEIGHTS[1], number=number, classes=2) if number > 1 else check_one()


def check_one() -> None:
    boxes, kept = decode_boxes(
        torch.zeros(1, 1, 1, 4),
        torch.tensor([[[[1.0, 2, 3, 5]]]]),
        torch.ones(1, 1, 1),
        SIZES[:1],
        None,
        WEIGHTS[0],
        2,
        0,
    )
    assert boxes.tolist() == [[[[1, 2, 3, 5]]]]
    assert kept.tolist() == [[[1]]]


def test_counts_and_numbers_that_are_none() -> None:
    offsets, scores = some_offsets(2, 3, 50), some_scores(2, 3, 50)
    anchors = some_anchors(50)[:, None].expand(2, 3, 50, 4).clone()
    offsets[0, 0, :3, 1], offsets[0, 1, 4, 2], offsets[1, 2, 5, 0], scores[1, 1, 6] = NAN, NAN, INF, NAN
    anchors[1, 0, 7, 3], anchors[1, 0, 8, 0] = NAN, -INF
    arguments = (offsets, anchors, scores, SIZES, torch.tensor([50, 33]), WEIGHTS[0], 1.0, 0.1)
    boxes, kept = decode_boxes(*arguments)
    true_boxes, true_kept = reference(*arguments)
    torch.testing.assert_close(boxes, true_boxes, rtol=1e-6, atol=1e-4, equal_nan=True)
    assert boxes.isnan().any()
    assert torch.equal(kept, true_kept)


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_rows_that_do_not_lie_on_16_bytes(offset: int) -> None:
    """Columns of a larger tensor, and a storage that begins anywhere."""
    storage = torch.cat([torch.zeros(offset), some_offsets(1, 2, 40).flatten()])
    offsets = storage[offset:].view(1, 2, 40, 4)
    wide = torch.cat([offsets, torch.zeros(1, 2, 40, 2)], dim=3)[..., :4]
    rest = (
        some_anchors(40)[:1, None].expand(1, 2, 40, 4),
        some_scores(1, 2, 40),
        SIZES[:1],
        None,
        WEIGHTS[0],
        0.0,
        0.0,
    )
    for each in (offsets, wide):
        boxes, _ = decode_boxes(each, *rest)
        torch.testing.assert_close(boxes, reference(offsets, *rest)[0], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 1, 5), (2, 0, 5), (2, 3, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    boxes = torch.zeros(*shape, 4)
    seen, kept = decode_boxes(boxes, boxes, torch.zeros(shape), torch.zeros(shape[0], 2), None, WEIGHTS[0], 0.0, 0.0)
    assert (seen.shape, kept.shape) == ((*shape, 4), shape)

"""Box arithmetic against torchvision's BoxCoder and box operations."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from mrcnn.boxes import at_least, at_least_float32, clip, decode, encode

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]


def some_boxes(number: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Boxes with sides of 4 to 200, partly with negative coordinates."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(number, 2, generator=generator, dtype=torch.float64) * 300 - 50
    size = torch.rand(number, 2, generator=generator, dtype=torch.float64) * 196 + 4
    return torch.cat([low, low + size], dim=1).to(dtype)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_offsets_are_torchvisions(weights: tuple[float, float, float, float]) -> None:
    boxes, anchors = some_boxes(50, seed=0), some_boxes(50, seed=1)
    coder = BoxCoder(weights)
    offsets = encode(boxes, anchors, weights)
    torch.testing.assert_close(offsets, coder.encode_single(boxes, anchors), rtol=1e-12, atol=1e-12)
    random = torch.randn(50, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3
    torch.testing.assert_close(
        decode(random, anchors, weights), coder.decode_single(random, anchors), rtol=1e-12, atol=1e-9
    )
    torch.testing.assert_close(decode(offsets, anchors, weights), boxes, rtol=1e-12, atol=1e-9)


def test_offsets_by_hand() -> None:
    anchor, box = torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[5.0, 5.0, 25.0, 25.0]])
    # The centre moves from (5, 10) to (15, 15); the width doubles, the height stays.
    torch.testing.assert_close(encode(box, anchor, WEIGHTS[0]), torch.tensor([[1.0, 0.25, math.log(2), 0.0]]))


def test_a_box_grows_at_most_62_fold_at_once() -> None:
    box = decode(torch.tensor([[0.0, 0.0, 50.0, 1000.0]]), torch.tensor([[0.0, 0.0, 2.0, 4.0]]), WEIGHTS[0])
    torch.testing.assert_close(box, torch.tensor([[1 - 62.5, 2 - 125.0, 1 + 62.5, 2 + 125.0]]))


def test_decode_broadcasts_over_classes() -> None:
    offsets = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    anchors = some_boxes(7, seed=3)
    theirs = BoxCoder(WEIGHTS[1]).decode(offsets.flatten(1), [anchors])
    torch.testing.assert_close(decode(offsets, anchors[:, None], WEIGHTS[1]), theirs, rtol=1e-12, atol=1e-9)


def test_clip_knows_each_images_size() -> None:
    boxes = torch.stack([some_boxes(40, seed=4), some_boxes(40, seed=5)])
    sizes = [(60, 170), (120, 90)]
    clipped = clip(boxes, torch.tensor(sizes))
    for ours, before, size in zip(clipped, boxes, sizes, strict=True):
        assert not torch.equal(ours, before)
        assert torch.equal(ours, clip_boxes_to_image(before, size))


def test_at_least_keeps_what_torchvision_keeps() -> None:
    boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0.99], [3, 3, 4, 9], [5, 5, 4, 9], [0, 0, 0, 0], [2, 2, 30, 40]])
    assert at_least(boxes, 1.0).nonzero()[:, 0].tolist() == remove_small_boxes(boxes, 1.0).tolist() == [0, 2, 5]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_scores_and_offsets_are_at_least_float32(given: torch.dtype, expected: torch.dtype) -> None:
    assert at_least_float32(torch.ones(3, dtype=given)).dtype == expected

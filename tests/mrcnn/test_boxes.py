"""Box arithmetic against torchvision's BoxCoder."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from kernels import decode_boxes
from mrcnn.boxes import at_least_float32, encode

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
    image, scores = torch.tensor([[1000, 1000]]), torch.zeros(1, 50, dtype=torch.float64)
    back, _ = decode_boxes(offsets[None], anchors, scores, image, weights=weights)
    torch.testing.assert_close(back[0], boxes.clamp(min=0), rtol=1e-12, atol=1e-9)


def test_offsets_by_hand() -> None:
    anchor, box = torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[5.0, 5.0, 25.0, 25.0]])
    # The centre moves from (5, 10) to (15, 15); the width doubles, the height stays.
    torch.testing.assert_close(encode(box, anchor, WEIGHTS[0]), torch.tensor([[1.0, 0.25, math.log(2), 0.0]]))


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

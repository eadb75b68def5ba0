"""The run-length kernels, interpreted: the bytes of pycocotools on the mask that the paste kernel makes."""

import pytest
import torch
from masks_to_encode import BOXES, IMAGE, SHAPES, encoded

from kernels import encode_masks
from kernels.gpu.encode_masks import mask_runs
from kernels.paste_masks import Rule
from kernels.reference.encode_masks import mask_runs as reference

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

RULES: list[Rule] = ["torchvision", "centers"]


@pytest.mark.parametrize("rule", RULES)
def test_bytes_are_those_of_pycocotools(rule: Rule) -> None:
    masks = SHAPES["noise"](len(BOXES))
    assert encode_masks(masks, BOXES, IMAGE, 0.5, rule) == encoded(masks, BOXES, IMAGE, 0.5, rule)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("shape", ["full", "stripes"])
@pytest.mark.parametrize("rule", RULES)
def test_runs_go_on_from_column_to_column(rule: Rule, shape: str, threshold: float) -> None:
    """Boxes as high as the image, and one that is not finite: with a threshold of 0 "centers" covers the image."""
    boxes = BOXES[[4, 6, 13]]
    masks = SHAPES[shape](len(boxes))
    assert encode_masks(masks, boxes, IMAGE, threshold, rule) == encoded(masks, boxes, IMAGE, threshold, rule)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    boxes = BOXES[:3]
    masks = SHAPES["noise"](len(boxes)).to(dtype)
    for rule in RULES:
        assert encode_masks(masks, boxes, IMAGE, 0.5, rule) == encoded(masks, boxes, IMAGE, 0.5, rule)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_dtypes_of_boxes(dtype: torch.dtype, rule: Rule) -> None:
    """Far from 0, where half precision has steps of a pixel and more."""
    boxes = torch.tensor([[1101.3, 1, 1123, 7], [300, 1, 322, 7]]).to(dtype)
    masks = SHAPES["stripes"](len(boxes))
    assert encode_masks(masks, boxes, (12, 1130), 0.37, rule) == encoded(masks, boxes.float(), (12, 1130), 0.37, rule)


@pytest.mark.parametrize("capacity", [1, 60, 1200])
def test_every_place_up_to_the_capacity_is_written(capacity: int) -> None:
    """Away from the threshold, where the two round alike."""
    boxes = BOXES[:5]
    masks = SHAPES["stripes"](len(boxes))
    seen = mask_runs(masks, boxes, IMAGE, 0.37, "torchvision", capacity)
    wanted = reference(masks, boxes, IMAGE, 0.37, "torchvision", capacity)
    assert all(torch.equal(ours, true) for ours, true in zip(seen, wanted, strict=True))


@pytest.mark.parametrize("height", [15, 16, 17])
def test_around_the_height_of_a_step(height: int) -> None:
    masks, boxes = SHAPES["full"](2), torch.tensor([[2.0, -9, 9, 90], [2, 3, 9, 90]])
    assert encode_masks(masks, boxes, (height, 11)) == encoded(masks, boxes, (height, 11), 0.5, "torchvision")


def test_an_image_of_many_tiles() -> None:
    """Columns left of the own are added up, from the box on."""
    masks, boxes = SHAPES["noise"](2), torch.tensor([[40.2, 3.1, 250.9, 19.5], [-3.0, -2, 290, 25]])
    assert encode_masks(masks, boxes, (21, 280)) == encoded(masks, boxes, (21, 280), 0.5, "torchvision")


def test_no_masks() -> None:
    runs, counts = mask_runs(torch.zeros(0, 28, 28), torch.zeros(0, 4), IMAGE, 0.5, "centers", 5)
    assert (runs.shape, counts.shape) == ((0, 5), (0,))

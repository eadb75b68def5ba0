"""The paste kernel, interpreted, against torchvision and against grid_sample as Detectron2 uses it."""

import numpy as np
import pytest
import torch
from error_rule import assert_error_rule
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.models.detection.roi_heads import expand_boxes, paste_masks_in_image

from kernels.gpu.paste_masks import paste_masks
from kernels.reference.paste_masks import paste_masks as reference_paste_masks

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

IMAGE = (37, 45)
RULES = ["torchvision", "centers"]
# Inside, across two borders, outside, larger than the image, smaller than a pixel, on whole pixels.
BOXES = torch.tensor(
    [
        [3.3, 4.1, 20.7, 30.2],
        [-10.3, -5.0, 12.4, 9.9],
        [100.0, 100.0, 120.0, 130.0],
        [-20.0, -30.0, 90.0, 70.0],
        [11.2, 12.1, 11.6, 12.9],
        [5.0, 6.0, 19.0, 20.0],
    ]
)


def masks(dtype: torch.dtype, size: int = 14) -> Tensor:
    return torch.rand((len(BOXES), size, size), generator=torch.Generator().manual_seed(0)).to(dtype)


def expected(masks: Tensor, boxes: Tensor, rule: str, image: tuple[int, int] = IMAGE) -> Tensor:
    """In the precision of the masks."""
    if rule == "torchvision":
        return paste_masks_in_image(masks[:, None], boxes, image)[:, 0]
    height, width = image
    x0, y0, x1, y1 = boxes.to(masks.dtype).split(1, dim=1)
    y = (torch.arange(height, dtype=masks.dtype) + 0.5 - y0) / (y1 - y0) * 2 - 1
    x = (torch.arange(width, dtype=masks.dtype) + 0.5 - x0) / (x1 - x0) * 2 - 1
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=3)
    return grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def exact(mask: Tensor, box: Tensor, rule: str) -> Tensor:
    """In numpy's extended precision, rounded to float64: what float64 is compared with."""
    size = mask.shape[0]
    weights = []
    for axis in (1, 0):  # y, then x
        pixel = np.arange(IMAGE[1 - axis], dtype=np.longdouble)
        if rule == "torchvision":
            low, high = expand_boxes(box[None], (size + 2) / size)[0].to(torch.int64)[[axis, axis + 2]].tolist()
            position = np.clip((pixel - low + 0.5) * (size + 2) / max(high - low + 1, 1) - 0.5, 0, size + 1) - 1
            inside = (pixel >= low) & (pixel <= high)
        else:
            low, high = (np.longdouble(x) for x in box[[axis, axis + 2]].tolist())
            position = (pixel + 0.5 - low) / (high - low) * size - 0.5
            inside = np.ones_like(pixel, dtype=bool)
        tent = np.maximum(1 - np.abs(position[:, None] - np.arange(size)), 0)
        weights.append(tent * inside[:, None])
    return torch.from_numpy((weights[0] @ mask.numpy().astype(np.longdouble) @ weights[1].T).astype(np.float64))


@pytest.mark.parametrize("rule", RULES)
def test_float64(rule: str) -> None:
    some = masks(torch.float64)
    truth = torch.stack([exact(mask, box, rule) for mask, box in zip(some, BOXES, strict=True)])
    result = paste_masks(some, BOXES, IMAGE, None, rule)
    assert result.dtype == torch.float64
    assert_error_rule(result, truth, expected(some, BOXES, rule), torch.float64)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_probabilities(dtype: torch.dtype, rule: str) -> None:
    some = masks(dtype)
    result = paste_masks(some, BOXES, IMAGE, None, rule)
    assert result.dtype == torch.float32
    truth = expected(some.double(), BOXES, rule)
    assert_error_rule(result, truth, expected(some.float(), BOXES, rule), torch.float32)


# Far from 0, where half precision has steps of a pixel and more; as the model's boxes are under autocast.
FAR = torch.tensor([[1101.0, 1, 1123, 7], [300, 1, 322, 7], [1030, 2, 1041, 11]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_dtypes_of_boxes(dtype: torch.dtype, rule: str) -> None:
    """What they say counts, and not what their dtype could hold of what is computed of them."""
    boxes = torch.cat([BOXES[[0, 5]], FAR]).to(dtype)
    some, size = masks(torch.float32)[: len(boxes)], (12, 1130)
    wide = boxes if dtype == torch.float64 else boxes.float()
    truth, plain = (expected(each, wide, rule, size) for each in (some.double(), some))
    assert_error_rule(paste_masks(some, boxes, size, None, rule), truth, plain, torch.float32)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("threshold", [0.25, 0.5])
def test_threshold(threshold: float, rule: str) -> None:
    """Exact where the value is not within rounding of the threshold."""
    result = paste_masks(masks(torch.float32), BOXES, IMAGE, threshold, rule)
    truth = expected(masks(torch.float32).double(), BOXES, rule)
    sure = (truth - threshold).abs() > 1e-5
    assert result.dtype == torch.bool
    assert sure.float().mean() > 0.99
    assert torch.equal(result[sure], (truth > threshold)[sure])


def test_which_side_the_threshold_is_on() -> None:
    """A mask of 0.5 everywhere at 0.5: above the threshold by neither rule, but not below it for "centers"."""
    half = torch.full((1, 8, 8), 0.5)
    box = torch.tensor([[4.0, 4.0, 20.0, 20.0]])
    assert not paste_masks(half, box, IMAGE, 0.5, "torchvision").any()
    inner = torch.zeros(IMAGE, dtype=torch.bool)
    inner[5:19, 5:19] = True
    assert torch.equal(paste_masks(half, box, IMAGE, 0.5, "centers")[0], inner)


@pytest.mark.parametrize("rule", RULES)
def test_unusable_boxes_give_zeros(rule: str) -> None:
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor([[nan, 1, 20, 20], [1, 1, inf, 20], [-3e38, -3e38, 3e38, 3e38], [1, 1, 20, -inf]])
    assert not paste_masks(masks(torch.float32)[:4], boxes, IMAGE, None, rule).any()


def test_no_area_at_pixel_centers_gives_zeros() -> None:
    boxes = torch.tensor([[5.5, 5.0, 5.5, 20.0], [5.0, 7.5, 20.0, 7.5]])
    assert not paste_masks(masks(torch.float32)[:2], boxes, IMAGE, None, "centers").any()


@pytest.mark.parametrize("rule", RULES)
def test_an_image_of_many_tiles(rule: str) -> None:
    some, box = masks(torch.float32)[:1], torch.tensor([[100.2, 3.1, 300.9, 39.5]])
    result = paste_masks(some, box, (41, 320), None, rule)
    plain = reference_paste_masks(some, box, (41, 320), None, rule)
    truth = reference_paste_masks(some.double(), box, (41, 320), None, rule)
    assert_error_rule(result, truth, plain, torch.float32)


def test_no_masks() -> None:
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), IMAGE, 0.5, "centers").shape == (0, *IMAGE)

"""Pasting masks, eager and reference, against torchvision and against grid_sample as Detectron2 uses it."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from error_rule import assert_error_rule
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.models.detection.roi_heads import paste_masks_in_image

from kernels import paste_masks, use
from kernels.dispatch import Implementation
from kernels.paste_masks import Rule

IMPLEMENTATIONS: list[Implementation] = ["eager", "reference"]
RULES: list[Rule] = ["torchvision", "centers"]
NAN, INF = float("nan"), float("inf")
IMAGE = (37, 45)

BOXES: dict[str, list[list[float]]] = {
    "inside": [[3.3, 4.1, 20.7, 30.2], [30.2, 1.2, 41.7, 8.9]],
    "one": [[3.3, 4.1, 20.7, 30.2]],
    "across the border": [[-10.3, -5.1, 12.4, 9.9], [30.3, 20.2, 60.6, 50.7], [-9.3, 3.2, -0.9, 9.1]],
    "far outside": [[100.2, 100.3, 120.4, 130.9], [-3000.2, 3, -2000.4, 9.1], [4, 5e4, 12, 6e4]],
    "degenerate": [
        [11.2, 12.1, 11.6, 12.9],
        [7.2, 3.4, 7.2, 20.1],
        [7.2, 9.1, 19.2, 9.1],
        [20.3, 20.2, 10.4, 9.7],
        [5, 20.2, 20.4, 9.7],
    ],
    "over the whole image": [[-20.2, -30.3, 90.4, 70.8]],
    "whole pixels": [[5, 6, 19, 20], [0, 0, 45, 37], [40, 30, 45, 37]],
}
NOT_EMPTY_OF_AREA = [kind for kind in BOXES if kind != "degenerate"]


def make(kind: str, dtype: torch.dtype, size: int = 14) -> tuple[Tensor, Tensor]:
    boxes = torch.tensor(BOXES[kind], dtype=torch.float32)
    masks = torch.rand((len(boxes), size, size), generator=torch.Generator().manual_seed(0))
    return masks.to(dtype), boxes


def oracle(masks: Tensor, boxes: Tensor, rule: Rule, precision: torch.dtype) -> Tensor:
    masks = masks.to(precision)
    if rule == "torchvision":
        pasted: Tensor = paste_masks_in_image(masks[:, None], boxes, IMAGE)
        return pasted[:, 0]
    x0, y0, x1, y1 = boxes.to(precision).split(1, dim=1)
    y = (torch.arange(IMAGE[0], dtype=precision) + 0.5 - y0) / (y1 - y0) * 2 - 1
    x = (torch.arange(IMAGE[1], dtype=precision) + 0.5 - x0) / (x1 - x0) * 2 - 1
    grid = torch.stack([x[:, None, :].expand(-1, IMAGE[0], -1), y[:, :, None].expand(-1, -1, IMAGE[1])], dim=3)
    return grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rule", "kind"), [("torchvision", kind) for kind in BOXES] + [("centers", kind) for kind in NOT_EMPTY_OF_AREA]
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_error_rule(implementation: Implementation, rule: Rule, kind: str, dtype: torch.dtype) -> None:
    for size in (14, 5):
        masks, boxes = make(kind, dtype, size)
        with use(implementation):
            result = paste_masks(masks, boxes, IMAGE, None, rule)
        assert result.dtype == torch.float32
        truth, plain = (oracle(masks, boxes, rule, precision) for precision in (torch.float64, torch.float32))
        assert_error_rule(result, truth, plain, torch.float32)


def exactly(mask: Tensor, box: Tensor, rule: Rule) -> Tensor:
    """One mask pasted in rational numbers: the oracles above round as the reference does, which says nothing here."""
    size, half_pixel, values = len(mask), Fraction(1, 2), mask.tolist()

    def taps(pixel: int, low: Fraction, high: Fraction) -> list[tuple[int, Fraction]]:
        """Pixels of the mask and their weights along one axis."""
        if rule == "torchvision":
            center, half = (low + high) / 2, (high - low) / 2 * (size + 2) / size
            first, last = int(center - half), int(center + half)
            if not first <= pixel <= last:
                return []
            at = (pixel - first + half_pixel) * (size + 2) / (last - first + 1) - half_pixel
            at = min(max(at, Fraction(0)), Fraction(size + 1)) - 1
        else:
            at = (pixel + half_pixel - low) / (high - low) * size - half_pixel
        whole = math.floor(at)
        return [(i, w) for i, w in ((whole, 1 - at + whole), (whole + 1, at - whole)) if 0 <= i < size]

    left, top, right, bottom = map(Fraction, box.tolist())
    rows = [taps(y, top, bottom) for y in range(IMAGE[0])]
    columns = [taps(x, left, right) for x in range(IMAGE[1])]
    pasted = [[float(sum(u * v * Fraction(values[i][j]) for i, u in r for j, v in c)) for c in columns] for r in rows]
    return torch.tensor(pasted, dtype=torch.float64)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_error_rule_in_float64(implementation: Implementation, rule: Rule) -> None:
    boxes = torch.tensor(BOXES["inside"])
    masks = torch.rand((2, 14, 14), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth = torch.stack([exactly(mask, box, rule) for mask, box in zip(masks, boxes, strict=True)])
    with use(implementation):
        result = paste_masks(masks, boxes, IMAGE, None, rule)
    assert result.dtype == torch.float64
    assert_error_rule(result, truth, oracle(masks, boxes, rule, torch.float64), torch.float64)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_threshold(implementation: Implementation, threshold: float, rule: Rule) -> None:
    """Exact but where the value is within rounding of the threshold: there a float32 oracle is of two minds."""
    masks, boxes = make("inside", torch.float32)
    with use(implementation):
        result = paste_masks(masks, boxes, IMAGE, threshold, rule)
    truth, plain = (oracle(masks, boxes, rule, precision) for precision in (torch.float64, torch.float32))
    rounding = 2 * (plain - truth).abs().max() + torch.finfo(torch.float32).eps
    sure = ((truth - threshold).abs() > rounding) | (truth == 0)
    assert result.dtype == torch.bool
    assert sure.float().mean() > 0.99
    expected = truth > threshold if rule == "torchvision" else truth >= threshold
    assert result.any()
    assert torch.equal(result[sure], expected[sure])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_which_side_the_threshold_is_on(implementation: Implementation) -> None:
    """A mask of 0.5 everywhere at 0.5: above the threshold by neither rule, but not below it for "centers"."""
    half, box = torch.full((1, 8, 8), 0.5), torch.tensor([[4.0, 4.0, 20.0, 20.0]])
    inner = torch.zeros(IMAGE, dtype=torch.bool)
    inner[5:19, 5:19] = True  # the outermost pixels fade out
    with use(implementation):
        assert not paste_masks(half, box, IMAGE).any()
        assert torch.equal(paste_masks(half, box, IMAGE, rule="centers")[0], inner)


@pytest.mark.parametrize("size", [7, 28])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_mask_in_a_box_of_its_own_size_comes_back(implementation: Implementation, size: int) -> None:
    mask = torch.rand((1, size, size), generator=torch.Generator().manual_seed(0))
    x, y = 6, 4
    crop = (0, slice(y, y + size), slice(x, x + size))
    exact = torch.tensor([[x, y, x + size, y + size]]).float()
    # With the border, and cut to whole pixels with both ends included, this box is size + 2 pixels wide.
    inset = exact + torch.tensor([0.25, 0.25, -0.25, -0.25])
    with use(implementation):
        for rule in RULES:
            box = inset if rule == "torchvision" else exact
            pasted = paste_masks(mask, box, IMAGE, None, rule)
            plain = oracle(mask, box, rule, torch.float32)[crop]  # grid_sample rounds the positions
            assert_error_rule(pasted[crop], mask[0].double(), plain, torch.float32)
            if implementation == "eager" or rule == "torchvision":
                assert torch.equal(pasted[crop], mask[0])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_boxes_that_are_not_finite_or_enormous_give_zeros(implementation: Implementation, rule: Rule) -> None:
    boxes = torch.tensor([[NAN, 1, 20, 20], [1, 1, INF, 20], [1, 1, 20, -INF], [-3e38, -3e38, 3e38, 3e38]])
    masks = torch.ones(4, 14, 14)
    with use(implementation):
        assert not paste_masks(masks, boxes, IMAGE, None, rule).any()
        assert not paste_masks(masks, boxes, IMAGE, 0.5, rule).any()


def test_a_huge_box_shows_the_part_of_the_mask_that_is_over_the_image() -> None:
    """The top left quarter of the mask is 1; the image lies around the box's centre."""
    mask = torch.zeros(1, 14, 14)
    mask[:, :7, :7] = 1
    box = torch.tensor([[-1e5 + 20, -1e5 + 10, 1e5 + 20, 1e5 + 10]])
    for rule in RULES:
        with use("eager"):
            pasted = paste_masks(mask, box, IMAGE, None, rule)
        # A pixel of the mask is 14286 pixels of the image: it is everywhere a quarter, within 37 / 14286.
        assert ((pasted - 0.25).abs() < 0.003).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_area_at_pixel_centers_gives_zeros(implementation: Implementation) -> None:
    boxes = torch.tensor([[5.5, 5.0, 5.5, 20.0], [5.0, 7.5, 20.0, 7.5]])
    with use(implementation):
        assert not paste_masks(torch.ones(2, 14, 14), boxes, IMAGE, 0.0 + 1e-6, "centers").any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_box_that_runs_backwards_mirrors_the_mask_at_pixel_centers(implementation: Implementation) -> None:
    masks, boxes = make("inside", torch.float32)
    with use(implementation):
        mirrored = paste_masks(masks.flip(2), boxes, IMAGE, None, "centers")
        backwards = paste_masks(masks, boxes[:, [2, 1, 0, 3]], IMAGE, None, "centers")
    truth = oracle(masks.flip(2), boxes, "centers", torch.float64)
    for result in (mirrored, backwards):
        assert_error_rule(result, truth, oracle(masks.flip(2), boxes, "centers", torch.float32), torch.float32)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_torchvisions_shape_strides_and_order(implementation: Implementation, rule: Rule) -> None:
    masks, boxes = make("across the border", torch.float32)
    order = torch.tensor([2, 0, 1])
    with use(implementation):
        expected = paste_masks(masks, boxes, IMAGE, None, rule)
        assert torch.equal(paste_masks(masks[:, None], boxes, IMAGE, None, rule), expected)
        strided = masks.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        assert torch.equal(paste_masks(strided, boxes.t().contiguous().t(), IMAGE, None, rule), expected)
        assert torch.equal(paste_masks(masks[order], boxes[order], IMAGE, None, rule), expected[order])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_masks(implementation: Implementation, rule: Rule) -> None:
    with use(implementation):
        none = paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), IMAGE, rule=rule)
    assert none.shape == (0, *IMAGE)
    assert none.dtype == torch.bool


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"masks": torch.zeros(2, 14, 15)}, r"masks is \(2, 14, 15\)"),
        ({"masks": torch.zeros(2, 3, 14, 14)}, r"masks is \(2, 3, 14, 14\)"),
        ({"masks": torch.zeros(2, 14, 14, dtype=torch.uint8)}, "masks is .* torch.uint8"),
        ({"boxes": torch.zeros(3, 4)}, r"boxes is \(3, 4\)"),
        ({"boxes": torch.zeros(2, 4, dtype=torch.int64)}, "boxes is .* torch.int64"),
        ({"boxes": torch.zeros(2, 4, device="meta")}, "boxes is on meta"),
        ({"image_size": (0, 5)}, r"image_size is \(0, 5\)"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": NAN}, "threshold is nan"),
        ({"rule": "detectron2"}, "rule is 'detectron2'"),
    ],
)
def test_wrong_arguments(changed: dict[str, Any], message: str) -> None:
    arguments = {"masks": torch.zeros(2, 14, 14), "boxes": torch.zeros(2, 4), "image_size": IMAGE, **changed}
    with use("eager"), pytest.raises(ValueError, match=message):
        paste_masks(**arguments)

"""Run lengths, eager and reference: the bytes of pycocotools on the pasted mask."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masks_to_encode import BOXES, IMAGE, SHAPES, encoded
from pycocotools import mask as coco_mask
from torch import Tensor

from kernels import encode_masks, mask_runs, use
from kernels.dispatch import Implementation
from kernels.encode_masks import _compress
from kernels.paste_masks import Rule

IMPLEMENTATIONS: list[Implementation] = ["eager", "reference"]
RULES: list[Rule] = ["torchvision", "centers"]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bytes_are_those_of_pycocotools(
    implementation: Implementation, rule: Rule, shape: str, threshold: float
) -> None:
    masks = SHAPES[shape](len(BOXES))
    with use(implementation):
        assert encode_masks(masks, BOXES, IMAGE, threshold, rule) == encoded(masks, BOXES, IMAGE, threshold, rule)
        # Many runs, so that a second round is needed.
        assert encode_masks(masks, BOXES, (37, 3), threshold, rule) == encoded(masks, BOXES, (37, 3), threshold, rule)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dtypes(implementation: Implementation, rule: Rule, dtype: torch.dtype) -> None:
    masks = SHAPES["noise"](len(BOXES)).to(dtype)
    with use(implementation):
        assert encode_masks(masks[:, None], BOXES, IMAGE, 0.5, rule) == encoded(masks, BOXES, IMAGE, 0.5, rule)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_by_hand(implementation: Implementation) -> None:
    """A mask of 1 in the two middle columns of an image of 3 x 4, from its first row to its last but one."""
    box = torch.tensor([[1.0, 0, 3, 2]])
    with use(implementation):
        runs, counts = mask_runs(torch.ones(1, 28, 28), box, (3, 4), 0.5, "centers")
        assert runs.tolist() == [[3, 2, 1, 2, 4, 0, 0, 0, 0]]
        assert counts.tolist() == [5]
        # As high as the image: the runs of the columns are one, up to the end.
        runs, counts = mask_runs(torch.ones(1, 28, 28), torch.tensor([[1.0, -9, 9, 9]]), (3, 4), 0.5, "centers")
        assert runs[0, : counts[0]].tolist() == [3, 9]
        runs, counts = mask_runs(torch.ones(1, 28, 28), torch.tensor([[-9.0, -9, 9, 9]]), (3, 4), 0.5, "centers")
        assert runs[0, : counts[0]].tolist() == [0, 12]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_runs_beyond_the_capacity_are_counted(implementation: Implementation) -> None:
    masks = SHAPES["noise"](len(BOXES))
    with use(implementation):
        every, counts = mask_runs(masks, BOXES, IMAGE, capacity=IMAGE[0] * IMAGE[1])
        assert counts.max() > 2 * IMAGE[1] + 1
        assert torch.equal(every.sum(dim=1), torch.full((len(BOXES),), IMAGE[0] * IMAGE[1]))
        for capacity in (1, 2, 7, None):
            some, again = mask_runs(masks, BOXES, IMAGE, capacity=capacity)
            assert some.shape[1] == (capacity or 2 * IMAGE[1] + 1)
            assert torch.equal(some, every[:, : some.shape[1]])
            assert torch.equal(again, counts)
            assert (some.dtype, again.dtype) == (torch.int32, torch.int64)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.integers(0, 2**29 - 1), min_size=1, max_size=9), max_size=5))
def test_the_text_is_the_one_of_pycocotools(rows: list[list[int]]) -> None:
    """Numbers up and down, as large as pycocotools has room for: six characters."""
    longest = max([len(row) for row in rows], default=0)
    runs = torch.tensor([row + [7] * (longest - len(row)) for row in rows], dtype=torch.int32).view(len(rows), longest)
    expected = [coco_mask.frPyObjects({"size": [1, 1], "counts": row}, 1, 1)["counts"] for row in rows]
    assert _compress(runs, torch.tensor([len(row) for row in rows], dtype=torch.int64)) == expected


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_masks(implementation: Implementation) -> None:
    with use(implementation):
        assert encode_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), IMAGE) == []
        runs, counts = mask_runs(torch.zeros(0, 28, 28), torch.zeros(0, 4), IMAGE, capacity=5)
    assert (runs.shape, counts.shape) == ((0, 5), (0,))


def test_decoded_it_is_the_pasted_mask() -> None:
    """The long way round, at the size of a photo."""
    generator = torch.Generator().manual_seed(3)
    low = torch.rand((6, 2), generator=generator) * torch.tensor([500.0, 400.0])
    boxes = torch.cat([low, low + 20 + torch.rand((6, 2), generator=generator) * 200], dim=1)
    masks: Tensor = torch.rand((6, 28, 28), generator=generator)
    with use("eager"):
        seen = encode_masks(masks, boxes, (480, 640))
    for one, expected in zip(seen, encoded(masks, boxes, (480, 640), 0.5, "torchvision"), strict=True):
        assert one == expected
        assert np.array_equal(coco_mask.decode(one), coco_mask.decode(expected))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"masks": torch.zeros(2, 14, 15)}, r"masks is \(2, 14, 15\)"),
        ({"masks": torch.zeros(2, 14, 14, dtype=torch.uint8)}, "masks is .* torch.uint8"),
        ({"boxes": torch.zeros(3, 4)}, r"boxes is \(3, 4\)"),
        ({"boxes": torch.zeros(2, 4, dtype=torch.int64)}, "boxes is .* torch.int64"),
        ({"boxes": torch.zeros(2, 4, device="meta")}, "boxes is on meta"),
        ({"image_size": (0, 5)}, r"image_size is \(0, 5\)"),
        ({"image_size": (65536, 65536)}, r"image_size is \(65536, 65536\)"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": None}, "threshold is None"),
        ({"rule": "detectron2"}, "rule is 'detectron2'"),
        ({"capacity": 0}, "capacity is 0"),
    ],
)
def test_wrong_arguments(changed: dict[str, Any], message: str) -> None:
    arguments = {"masks": torch.zeros(2, 14, 14), "boxes": torch.zeros(2, 4), "image_size": IMAGE, **changed}
    with use("eager"), pytest.raises(ValueError, match=message):
        mask_runs(**arguments)

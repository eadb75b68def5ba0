"""The mask loss of bit-packed masks and of polygons: the same bits as for the masks that they stand for."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from polygons_to_draw import pycocotools, some_instances
from test_mask_loss import make, ours
from torch import Tensor

from kernels import PackedMasks, mask_loss, pack_masks, unpack_masks, use
from kernels.dispatch import Implementation
from kernels.masks import polygons_from_coco

IMPLEMENTATIONS: list[Implementation] = ["eager", "reference"]


def masks(width: int = 45, dtype: torch.dtype = torch.uint8) -> Tensor:
    return (torch.rand((3, 7, width), generator=torch.Generator().manual_seed(0)) > 0.5).to(dtype)


@pytest.mark.parametrize("width", [0, 1, 31, 32, 33, 100])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool], ids=str)
def test_bits_are_numpys(width: int, dtype: torch.dtype) -> None:
    packed = pack_masks(masks(width, dtype))
    expected = np.packbits(masks(width).numpy(), axis=2, bitorder="little")
    assert packed.bits.shape == (3, 7, -(-width // 32))
    assert np.array_equal(packed.bits.view(torch.uint8).numpy()[..., : expected.shape[2]], expected)
    assert unpack_masks(packed).equal(masks(width))


@pytest.mark.parametrize("ratio", [-1, 2])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_packed_masks(implementation: Implementation, ratio: int) -> None:
    case = make()
    packed: Any = replace(case, gt_masks=pack_masks(case.gt_masks))  # type: ignore[arg-type]
    for seen, same in zip(
        ours(packed, implementation, sampling_ratio=ratio),
        ours(case, implementation, sampling_ratio=ratio),
        strict=True,
    ):
        assert seen.equal(same)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_polygons(implementation: Implementation) -> None:
    instances = some_instances(3, 25, 33, seed=3)
    drawn = pycocotools(instances, 25, 33)
    assert drawn.any()
    case = make()
    polygons: Any = replace(case, gt_masks=polygons_from_coco(instances, 25, 33))  # type: ignore[arg-type]
    for seen, same in zip(
        ours(polygons, implementation), ours(replace(case, gt_masks=drawn), implementation), strict=True
    ):
        assert seen.equal(same)


def test_compiles_whole() -> None:
    instances = some_instances(3, 25, 33, seed=3)
    case = make()
    arguments: Any = (case.labels, case.boxes, polygons_from_coco(instances, 25, 33), case.gt_index)
    with use("eager"):
        fast = torch.compile(mask_loss, backend="aot_eager", fullgraph=True)
        assert fast(case.logits, *arguments).equal(mask_loss(case.logits, *arguments))


@pytest.mark.parametrize(
    ("gt_masks", "message"),
    [
        (PackedMasks(torch.zeros(3, 25, 2), 33), "gt_masks.bits is .* torch.float32"),
        (PackedMasks(torch.zeros(3, 25, 1, dtype=torch.int32), 33), r"gt_masks.bits is \(3, 25, 1\)"),
        (PackedMasks(torch.zeros(3, 25, 2, dtype=torch.int32, device="meta"), 33), "gt_masks.bits is on meta"),
        (polygons_from_coco([[]], 25, 33)._replace(width=-1), "gt_masks.width is -1"),
    ],
)
def test_wrong_masks(gt_masks: Any, message: str) -> None:
    case = make()
    with use("eager"), pytest.raises(ValueError, match=message):
        mask_loss(case.logits, case.labels, case.boxes, gt_masks, case.gt_index)

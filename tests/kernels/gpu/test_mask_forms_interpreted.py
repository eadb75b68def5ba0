"""Polygons and bit-packed masks in the kernels, interpreted: pycocotools' pixels, and the bits of the plain masks."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from kernels import pack_masks
from kernels.gpu.mask_loss import mask_loss, mask_loss_with_counts
from kernels.gpu.rasterize import rasterize
from kernels.masks import PackedMasks, polygons_from_coco, unpack_masks
from kernels.reference.mask_loss import mask_loss_with_counts as reference_with_counts

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

HEIGHT, WIDTH = 21, 50
# Two parts that overlap, a star that crosses itself, one across the corner, a sliver, one outside, nothing.
INSTANCES = [
    [[3.3, 2.2, 30.1, 4.7, 12.9, 18.8], [10.0, 1.0, 45.5, 10.5, 20.5, 12.0]],
    [[25.0, 0.0, 35.0, 20.0, 8.0, 7.0, 42.0, 7.0, 15.0, 20.0]],
    [[-8.7, -3.3, 12.2, -6.1, 6.4, 9.9, -2.5, 14.5]],
    [[47.1, 2.0, 47.3, 19.0, 47.6, 19.0]],
    [[60.0, 3.0, 70.0, 3.0, 65.0, 9.0]],
    [],
]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_polygons_are_drawn_as_pycocotools_draws_them(dtype: torch.dtype, whole: bool) -> None:
    across_the_edge: list[list[float]] = [[40.0, 5.0, 61.0, 5.0, 61.0, 15.0, 40.0, 15.0]]
    instances = [*INSTANCES, across_the_edge]
    polygons = polygons_from_coco(instances, HEIGHT, WIDTH)
    bits, extents = rasterize(polygons.vertices.to(dtype), *polygons[1:], whole)
    seen = unpack_masks(PackedMasks(bits, WIDTH))
    for instance, mask, (left, top, right, bottom) in zip(instances, seen, extents.tolist(), strict=True):
        expected = np.zeros((HEIGHT, WIDTH), np.uint8)
        if instance:
            rounded = [np.asarray(part, np.float32 if dtype == torch.float32 else float).tolist() for part in instance]
            expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rounded, HEIGHT, WIDTH)))
        inside = expected[top:bottom, left:right]
        assert inside.sum() == expected.sum()
        if whole:
            assert np.array_equal(mask.numpy(), expected)
        else:
            assert np.array_equal(mask[top:bottom, left:right].numpy(), inside)
    if whole:
        assert bits.equal(pack_masks(seen).bits)  # also past the width, where bits are 0


@pytest.mark.parametrize("ratio", [-1, 2])
def test_the_loss_is_the_same_for_every_form_of_masks(ratio: int) -> None:
    polygons = polygons_from_coco(INSTANCES, HEIGHT, WIDTH)
    masks = unpack_masks(PackedMasks(rasterize(*polygons, True)[0], WIDTH))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((6, 2, 5, 5), generator=generator)
    boxes = torch.tensor(
        [[1.0, 1, 40, 20], [10, 2, 38, 19], [-9, -6, 13, 15], [46, 1, 49, 20], [50, 1, 70, 9], [0, 0, 50, 21]]
    )
    head, tail = (logits, torch.tensor([0, 1, 1, 0, 1, 0]), boxes), (torch.arange(6), torch.ones(6), ratio)
    expected = mask_loss(*head, masks, *tail)
    assert masks.any()
    bits, extents = rasterize(*polygons, False)
    for seen in (mask_loss(*head, pack_masks(masks).bits, *tail, WIDTH), mask_loss(*head, bits, *tail, WIDTH, extents)):
        assert all(a.equal(b) for a, b in zip(seen, expected, strict=True))
    loss, _, counts = mask_loss_with_counts(*head, masks, *tail)
    assert loss.equal(expected[0])
    assert counts.tolist() == reference_with_counts(*head, masks, *tail)[2].tolist()

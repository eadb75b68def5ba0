"""Polygons to masks against pycocotools, pixel for pixel."""

import pytest
import torch
from polygons_to_draw import Instances, pycocotools, some_instances
from torch import Tensor

from kernels import Polygons, rasterize_polygons, unpack_masks, use
from kernels.dispatch import Implementation
from kernels.masks import polygons_from_coco


def ours(instances: Instances, height: int, width: int, implementation: Implementation) -> Tensor:
    with use(implementation):
        return unpack_masks(rasterize_polygons(polygons_from_coco(instances, height, width)))


@pytest.mark.parametrize(("implementation", "number"), [("eager", 1000), ("reference", 100)])
@pytest.mark.parametrize("size", [(37, 45), (64, 64), (5, 97)], ids=str)
def test_every_pixel(implementation: Implementation, number: int, size: tuple[int, int]) -> None:
    instances = some_instances(number, *size, seed=size[0])
    assert ours(instances, *size, implementation).equal(pycocotools(instances, *size))


def test_corners_far_outside() -> None:
    """Edges of some ten thousand pixels through a small image."""
    instances: Instances = [
        [[-3e4, -9e4, 3e4 + 13, 9e4 - 7, 20.0, 31.0]],
        [[1.3, -8e4, 14.7, 7e4, 40.2, 3e4]],
        [[-5e4, 3.3, 4e4, 20.1, 25, 9.0]],
    ]
    seen = ours(instances, 30, 40, "eager")
    assert seen.any()
    assert seen.equal(pycocotools(instances, 30, 40))


@pytest.mark.parametrize("implementation", ["eager", "reference"])
def test_float32_vertices(implementation: Implementation) -> None:
    polygons = polygons_from_coco(some_instances(50, 40, 50), 40, 50)
    rounded = polygons._replace(vertices=polygons.vertices.float())
    with use(implementation):
        seen = rasterize_polygons(rounded)
        same = rasterize_polygons(rounded._replace(vertices=rounded.vertices.double()))
    assert seen.bits.equal(same.bits)


@pytest.mark.parametrize("implementation", ["eager", "reference"])
def test_nothing_to_draw(implementation: Implementation) -> None:
    none = torch.zeros(1, dtype=torch.int64)
    with use(implementation):
        assert rasterize_polygons(Polygons(torch.zeros(0, 2), none, none, 9, 40)).bits.shape == (0, 9, 2)
        assert not rasterize_polygons(polygons_from_coco([[], [[1.0, 1.0]]], 9, 40)).bits.any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vertices": torch.zeros(3, 3)}, r"polygons.vertices is \(3, 3\)"),
        ({"vertices": torch.zeros(3, 2).half()}, "polygons.vertices is .* torch.float16"),
        ({"part_offsets": torch.zeros(2)}, "polygons.part_offsets is .* torch.float32"),
        ({"part_offsets": torch.tensor([0, 4])}, r"polygons.part_offsets is \[0, 4\]; it must rise from 0 to 3"),
        ({"instance_offsets": torch.tensor([0, 2, 1])}, r"polygons.instance_offsets is \[0, 2, 1\]"),
        ({"instance_offsets": torch.tensor([0, 1], device="meta")}, "polygons.instance_offsets is on meta"),
        ({"height": -1}, "polygons.height is -1; it must be a whole number of at least 0"),
    ],
)
def test_wrong_arguments(changed: dict[str, object], message: str) -> None:
    polygons = polygons_from_coco([[[0.0, 0, 5, 0, 5, 5]]], 9, 9)
    with use("eager"), pytest.raises(ValueError, match=message):
        rasterize_polygons(polygons._replace(**changed))  # type: ignore[arg-type]

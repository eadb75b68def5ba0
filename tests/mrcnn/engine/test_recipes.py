"""Recipes by number of images and size of objects, on made-up data sets."""

import math

import pytest

from mrcnn.data import InstanceDataset
from mrcnn.data.records import Annotation, Contents, ImageRecord
from mrcnn.engine.recipes import RECIPES, recipe_for

SMALL_PRESET = "mask_rcnn_r18_fpn_gn"  # 288 to 512 pixels


def made_up(images: int, short_side: int, areas: list[float], *, crowd: bool = False) -> InstanceDataset:
    """Images of short_side x 2 short_side pixels, each with objects of these areas."""
    objects = tuple(
        Annotation(k, 1, (0.0, 0.0, 9.0, 9.0), area, {"size": [1, 1], "counts": "0"}, is_crowd=crowd)
        for k, area in enumerate(areas)
    )
    records = [ImageRecord(k, f"{k}.png", None, 2 * short_side, short_side, objects) for k in range(images)]
    return InstanceDataset(Contents(records, ["background", "thing"], [0, 1], []), name="made up")


def test_large_data_sets_are_trained_as_in_the_paper() -> None:
    recipe = recipe_for(made_up(2_001, 480, [50.0]), SMALL_PRESET)
    assert recipe is RECIPES[-1]
    assert recipe.train.optimizer == "sgd"
    assert [r.largest for r in RECIPES] == sorted(r.largest for r in RECIPES)
    assert RECIPES[-1].largest == math.inf


@pytest.mark.parametrize(("images", "steps"), [(1, 500), (100, 500), (101, 505), (2_000, 10_000)])
def test_small_data_sets_are_seen_at_least_five_times(images: int, steps: int) -> None:
    assert recipe_for(made_up(images, 480, [9_000.0]), SMALL_PRESET).train.steps == steps


@pytest.mark.parametrize(
    ("short_side", "areas", "min_size"),
    [
        (480, [60.0**2, 2.0, 50.0**2], None),  # half of the objects have more than 28 pixels at the preset's 288
        (480, [30.0**2], 448),  # 28 pixels at 448
        (480, [35.0**2, 10.0, 35.0**2], 384),
        (256, [11.0**2], 384),  # 28 pixels would be at 652, but that is more than one and a half times the image
        (2_000, [20.0**2], 800),  # not more than the paper's
        (100, [3.0**2], None),  # 150 is less than the preset's
        (480, [], None),
    ],
)
def test_images_with_small_objects_are_enlarged(short_side: int, areas: list[float], min_size: int | None) -> None:
    model = recipe_for(made_up(5, short_side, areas), SMALL_PRESET).model
    assert model == ({} if min_size is None else {"min_size": min_size, "max_size": round(min_size * 512 / 288)})
    assert recipe_for(made_up(5, short_side, areas), "mask_rcnn_r50_fpn").model == {}  # 800 is enough


def test_crowd_regions_do_not_count() -> None:
    assert recipe_for(made_up(5, 480, [10.0**2], crowd=True), SMALL_PRESET).model == {}

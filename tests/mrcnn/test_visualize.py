"""Pictures checked by their pixels."""

import itertools

import numpy as np
import pytest
import torch
from pycocotools import mask as rle_tools

from mrcnn.visualize import Style, distinct_colours, draw_instances, side_by_side

PLAIN = Style(boxes=False, labels=False, shortest_side=1)


def scene():
    """A grey 40 x 60 image with a 20 x 20 square and a 10 x 10 square inside its corner."""
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[0, 5:15, 5:15] = True
    masks[1, 5:25, 5:25] = True
    boxes = torch.tensor([[5.0, 5, 15, 15], [5, 5, 25, 25]])
    instances = {
        "masks": masks,
        "boxes": boxes,
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.9, 0.6]),
    }
    return torch.full((3, 40, 60), 0.5), instances


def test_fill_and_outline_take_the_instances_colour_and_the_rest_stays():
    image, instances = scene()
    pixels = np.asarray(draw_instances(image, instances, style=PLAIN)).astype(int)
    colours = np.array(distinct_colours(2))
    assert pixels.shape == (40, 60, 3)
    assert (pixels[30:, 30:] == 127).all()
    assert (pixels[:5] == 127).all()
    assert (pixels[24, 10] == colours[1]).all()  # on the large square's lower edge
    expected = 127 + PLAIN.fill * (colours[1] - 127)
    assert pixels[20, 20] == pytest.approx(expected, abs=1)


def test_small_instances_lie_on_large_ones():
    image, instances = scene()
    pixels = np.asarray(draw_instances(image, instances, style=PLAIN))
    assert tuple(pixels[14, 10]) == distinct_colours(2)[0]


def test_all_forms_of_masks_give_the_same_picture():
    image, instances = scene()
    masks = instances["masks"]
    rles = [rle_tools.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for m in masks]
    forms = [masks, masks.to(torch.uint8), masks[:, None].float() * 0.9, rles]
    pictures = [draw_instances(image, instances | {"masks": form}).tobytes() for form in forms]
    assert len(set(pictures)) == 1


def test_small_images_are_enlarged_by_a_whole_factor_up_to_the_limit():
    image, instances = scene()
    sizes = {
        side: draw_instances(image, instances, style=Style(shortest_side=side, largest_factor=4)).size
        for side in (40, 41, 100, 900)
    }
    assert sizes == {40: (60, 40), 41: (120, 80), 100: (180, 120), 900: (240, 160)}


def test_the_outline_stays_on_the_mask_when_enlarged():
    image, instances = scene()
    style = Style(boxes=False, labels=False, shortest_side=160)
    before = np.full((160, 240, 3), 127)
    pixels = np.asarray(draw_instances(image, instances, style=style)).astype(int)
    changed = (np.abs(pixels - before).max(axis=2) > 2).nonzero()
    assert (changed[0].min(), changed[0].max() + 1) == pytest.approx((20, 100), abs=2)
    assert (changed[1].min(), changed[1].max() + 1) == pytest.approx((20, 100), abs=2)


def test_low_scores_are_left_out_and_keep_the_others_colours():
    image, instances = scene()
    both = np.asarray(draw_instances(image, instances, style=PLAIN))
    one = np.asarray(draw_instances(image, instances, score_threshold=0.7, style=PLAIN))
    assert (one[20, 20] == 127).all()
    assert (one[14, 10] == both[14, 10]).all()


def test_boxes_and_labels_are_drawn_when_asked():
    image, instances = scene()
    names = ["background", "cell", "nucleus"]
    pictures = [
        draw_instances(image, instances, names, style=Style(boxes=boxes, labels=labels))
        for boxes, labels in itertools.product((False, True), repeat=2)
    ]
    assert len({picture.tobytes() for picture in pictures}) == 4
    renamed = draw_instances(image, instances, ["background", "cell", "seed"], style=Style())
    assert renamed.tobytes() != pictures[3].tobytes()


@pytest.mark.parametrize("masks", [torch.zeros(0, 40, 60, dtype=torch.bool), []])
def test_nothing_found_gives_the_image(masks):
    image = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    nothing = {"masks": masks, "boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}
    pixels = np.asarray(draw_instances(image, nothing, ["background", "a"], style=Style(shortest_side=1)))
    assert pixels == pytest.approx((image * 255).byte().permute(1, 2, 0).numpy())


def test_masks_that_are_empty_or_touch_the_border():
    masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    masks[1] = True
    masks[2, 39, 59] = True
    boxes = torch.tensor([[0.0, 0, 0, 0], [0, 0, 60, 40], [59, 39, 60, 40]])
    instances = {"masks": masks, "boxes": boxes, "scores": torch.ones(3)}
    pixels = np.asarray(draw_instances(torch.zeros(3, 40, 60), instances, style=PLAIN))
    assert (pixels.max(axis=2) > 0).all()
    assert tuple(pixels[39, 59]) == distinct_colours(3)[2]


def test_many_colours_are_bright_and_differ():
    colours = distinct_colours(200)
    assert len(set(colours)) == 200
    brightness = np.array(colours) @ [0.299, 0.587, 0.114]
    assert brightness.min() > 100
    near = [np.abs(np.subtract(a, b)).max() for a, b in itertools.pairwise(colours)]
    assert min(near) > 60


def test_side_by_side_keeps_both_whole():
    image, instances = scene()
    picture = draw_instances(image, instances, style=PLAIN)
    sheet = side_by_side([picture, picture], ["prediction", "truth"], gap=10)
    assert sheet.size == (130, 70)
    pixels = np.asarray(sheet)
    assert (pixels[30:, :60] == np.asarray(picture)).all()
    assert (pixels[30:, 70:] == np.asarray(picture)).all()
    assert (pixels[30:, 60:70] == 255).all()

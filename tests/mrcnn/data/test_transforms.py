"""Image, boxes and masks move together; a point that is an object before is the same object after."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mrcnn.data import Augmentation, Sample, augment, nuclei_dataset
from mrcnn.data.transforms import crop_and_resize, flip, mask_boxes, random_crop, rotate


def tight_boxes(masks: Tensor) -> Tensor:
    """By hand: the first and last used column and row of each mask."""
    boxes = []
    for mask in masks.numpy():
        rows, columns = np.nonzero(mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def make(height: int, width: int, count: int, seed: int) -> Sample:
    """Rectangular objects, one grey value each, drawn over each other."""
    generator = np.random.default_rng(seed)
    labels = np.zeros((height, width), dtype=np.int64)
    for value in range(1, count + 1):
        top, left = generator.integers(0, height), generator.integers(0, width)
        labels[top : top + generator.integers(1, 6), left : left + generator.integers(1, 6)] = value
    values = np.unique(labels[labels > 0])
    masks = torch.from_numpy((labels[None] == values[:, None, None]).astype(np.uint8))
    image = torch.from_numpy(np.repeat(labels[None] / 20, 3, axis=0)).float()
    target = {"boxes": tight_boxes(masks), "labels": torch.from_numpy(values), "masks": masks}
    return Sample(image, target, 1, "made up")


samples = st.builds(make, st.integers(4, 24), st.integers(4, 24), st.integers(0, 8), st.integers(0, 2**32))


def assert_consistent(sample: Sample) -> None:
    """Boxes are those of the masks, and each mask lies on the pixels with its object's grey value."""
    target = sample.target
    assert target["masks"].shape == (len(target["labels"]), *sample.image.shape[1:])
    assert target["boxes"].shape == (len(target["labels"]), 4)
    assert [target[key].dtype for key in target] == [torch.float32, torch.int64, torch.uint8]
    assert torch.equal(target["boxes"], tight_boxes(target["masks"]))
    assert sample.image.is_contiguous()
    assert target["masks"].is_contiguous()
    for label, mask in zip(target["labels"], target["masks"], strict=True):
        assert torch.equal(mask == 1, (sample.image[0] * 20).round() == label)


def assert_same(first: Sample, second: Sample) -> None:
    assert torch.equal(first.image, second.image)
    for key in first.target:
        assert torch.equal(first.target[key], second.target[key])


@settings(deadline=None)
@given(samples, st.booleans())
def test_flip(sample: Sample, horizontal: bool) -> None:
    mirrored = flip(sample, horizontal=horizontal)
    assert_consistent(mirrored)
    expected = sample.image.numpy()[:, :, ::-1] if horizontal else sample.image.numpy()[:, ::-1]
    np.testing.assert_array_equal(mirrored.image, expected)
    assert_same(flip(mirrored, horizontal=horizontal), sample)


@settings(deadline=None)
@given(samples, st.integers(-3, 6))
def test_rotate(sample: Sample, quarters: int) -> None:
    turned = rotate(sample, quarters)
    assert_consistent(turned)
    np.testing.assert_array_equal(turned.image, np.rot90(sample.image.numpy(), quarters, axes=(1, 2)))
    assert_same(rotate(turned, -quarters), sample)


def test_half_turn_is_two_flips() -> None:
    sample = make(9, 13, 5, 0)
    assert_same(rotate(sample, 2), flip(flip(sample, horizontal=True), horizontal=False))


def test_annotated_boxes_are_moved_not_recomputed() -> None:
    sample = make(8, 10, 1, 0)
    loose = replace(sample, target=sample.target | {"boxes": torch.tensor([[1.25, 2.0, 7.5, 8.0]])})
    assert flip(loose, horizontal=True).target["boxes"].tolist() == [[2.5, 2.0, 8.75, 8.0]]
    assert rotate(loose, 1).target["boxes"].tolist() == [[2.0, 2.5, 8.0, 8.75]]
    doubled = crop_and_resize(loose, (0, 0, 8, 10), (16, 20), 1)
    assert doubled.target["boxes"].tolist() == [[2.5, 4.0, 15.0, 16.0]]


@settings(deadline=None)
@given(samples, st.data())
def test_crop(sample: Sample, data: st.DataObject) -> None:
    height, width = sample.image.shape[1:]
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows, columns = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    cropped = crop_and_resize(sample, (top, left, rows, columns), (rows, columns), 1)
    assert_consistent(cropped)
    window = sample.image[:, top : top + rows, left : left + columns]
    assert torch.equal(cropped.image, window)
    visible = np.unique((window * 20).round().numpy())
    assert cropped.target["labels"].tolist() == visible[visible > 0].tolist()


@settings(deadline=None)
@given(samples, st.integers(2, 3))
def test_whole_enlargement_repeats_mask_pixels(sample: Sample, factor: int) -> None:
    height, width = sample.image.shape[1:]
    larger = crop_and_resize(sample, (0, 0, height, width), (height * factor, width * factor), 1)
    masks = sample.target["masks"].numpy()
    np.testing.assert_array_equal(larger.target["masks"], masks.repeat(factor, 1).repeat(factor, 2))
    assert torch.equal(larger.target["boxes"], sample.target["boxes"] * factor)


@settings(deadline=None)
@given(samples, st.sampled_from([1, 2, 4, 8, 16, 32]), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_masks_are_resized_as_torch_does(sample: Sample, rows: int, columns: int) -> None:
    """Torch's "nearest-exact", at sizes whose steps it holds exactly."""
    height, width = sample.image.shape[1:]
    resized = crop_and_resize(sample, (0, 0, height, width), (rows, columns), 1).target
    expected = [
        F.interpolate(mask[None, None], (rows, columns), mode="nearest-exact")[0, 0] for mask in sample.target["masks"]
    ]
    visible = [mask for mask in expected if mask.any()]
    assert len(resized["masks"]) == len(visible)
    assert all(torch.equal(one, other) for one, other in zip(resized["masks"], visible, strict=True))


def test_resized_image_is_the_mean_of_its_pixels() -> None:
    sample = make(8, 12, 4, 3)
    half = crop_and_resize(sample, (0, 0, 8, 12), (4, 6), 1)
    # Antialiased: weights 1, 3, 3, 1 along each axis, away from the border.
    weights = np.array([1, 3, 3, 1]) / 8
    patch = sample.image[0, 1:5, 3:7].numpy().astype(np.float64)
    assert half.image[0, 1, 2].item() == pytest.approx(weights @ patch @ weights, abs=1e-6)


def test_remnants_are_dropped_only_when_cut() -> None:
    labels = torch.zeros(12, 12)
    labels[0, 0:2] = 1  # 2 pixels, inside the window
    labels[4:8, 5:9] = 2  # 4 of 16 pixels remain
    labels[9:12, 0:4] = 3  # outside
    values = torch.tensor([1, 2, 3])
    masks = (labels[None] == values[:, None, None]).to(torch.uint8)
    target = {"boxes": tight_boxes(masks), "labels": values, "masks": masks}
    sample = Sample(labels.repeat(3, 1, 1), target, 1, "")
    assert crop_and_resize(sample, (0, 0, 8, 6), (8, 6), 5).target["labels"].tolist() == [1]
    kept = crop_and_resize(sample, (0, 0, 8, 6), (8, 6), 4).target
    assert kept["labels"].tolist() == [1, 2]
    assert kept["boxes"].tolist() == [[0, 0, 2, 1], [5, 4, 6, 8]]
    # Enlarged twice, the 4 pixels are 16.
    assert crop_and_resize(sample, (0, 0, 8, 6), (16, 12), 16).target["labels"].tolist() == [1, 2]


def test_object_that_vanishes_when_made_smaller_is_dropped() -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.uint8)
    masks[0, 3, 3] = 1
    target = {"boxes": torch.tensor([[3.0, 3, 4, 4]]), "labels": torch.tensor([1]), "masks": masks}
    small = crop_and_resize(Sample(torch.zeros(3, 16, 16), target, 1, ""), (0, 0, 16, 16), (4, 4), 1)
    assert [tuple(value.shape) for value in small.target.values()] == [(0, 4), (0,), (0, 4, 4)]


@pytest.mark.parametrize("zoom", [0.5, 0.8, 1.0, 1.7, 40.0])
@pytest.mark.parametrize("size", [(12, 12), (20, 7), (40, 40)])
def test_random_crop_has_the_size_asked_for(zoom: float, size: tuple[int, int]) -> None:
    sample = make(17, 23, 6, 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        cropped = random_crop(sample, size, zoom, 1, generator)
        assert cropped.image.shape == (3, *size)
        assert cropped.target["masks"].shape[1:] == size
        boxes = cropped.target["boxes"]
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([size[1], size[0]] * 2)).all()
        # A resized border may lie one enlarged pixel off the mask's.
        assert ((boxes - tight_boxes(cropped.target["masks"])).abs() <= max(1, zoom)).all()


def test_padding_has_the_mean_colour_and_no_object() -> None:
    sample = make(6, 8, 3, 2)
    padded = random_crop(sample, (10, 11), 1.0, 1, torch.Generator().manual_seed(0))
    assert torch.equal(padded.image[:, :6, :8], sample.image)
    mean = sample.image.double().mean().item()
    np.testing.assert_allclose(padded.image[:, 6:].numpy(), mean, atol=1e-6)
    np.testing.assert_allclose(padded.image[:, :, 8:].numpy(), mean, atol=1e-6)
    assert torch.equal(padded.target["masks"][:, :6, :8], sample.target["masks"])
    assert padded.target["masks"].sum() == sample.target["masks"].sum()


EVERYTHING = Augmentation(
    vflip=0.5,
    rot90=True,
    scale=(0.7, 1.4),
    crop=(96, 80),
    brightness=0.1,
    contrast=0.2,
    gamma=0.2,
    per_channel=True,
)


def test_the_generator_decides_and_the_input_stays() -> None:
    sample = nuclei_dataset("left")[0]
    before = {key: tensor.clone() for key, tensor in sample.target.items()} | {"image": sample.image.clone()}
    results = [augment(sample, EVERYTHING, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert_same(results[0], results[1])
    assert not torch.equal(results[0].image, results[2].image)
    assert torch.equal(sample.image, before["image"])
    for key, tensor in sample.target.items():
        assert torch.equal(tensor, before[key])


def test_every_outcome_comes_with_its_probability() -> None:
    """Of the 8 mirror images and turns of a picture each comes an eighth of the time."""
    sample = Sample(
        torch.arange(12.0).reshape(3, 2, 2) / 12,
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "masks": torch.zeros(0, 2, 2, dtype=torch.uint8),
        },
        1,
        "",
    )
    generator = torch.Generator().manual_seed(0)
    augmentation = Augmentation(hflip=0.5, rot90=True)
    seen: dict[tuple[float, ...], int] = {}
    for _ in range(1600):
        key = tuple(augment(sample, augmentation, generator).image[0].flatten().tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 8
    assert all(abs(count - 200) < 5 * 200**0.5 for count in seen.values())


def test_nothing_to_do_is_the_identity() -> None:
    sample = make(9, 11, 4, 5)
    generator = torch.Generator().manual_seed(0)
    assert_same(augment(sample, Augmentation(hflip=0), generator), sample)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_colours_stay_in_range_and_masks_as_they_are(seed: int, per_channel: bool) -> None:
    sample = make(12, 12, 5, seed)
    jitter = Augmentation(hflip=0, brightness=0.5, contrast=1, gamma=1, per_channel=per_channel)
    changed = augment(sample, jitter, torch.Generator().manual_seed(seed))
    assert changed.image.min() >= 0
    assert changed.image.max() <= 1
    for key in sample.target:
        assert torch.equal(changed.target[key], sample.target[key])


@pytest.mark.parametrize("per_channel", [False, True])
def test_channels_change_together_or_apart(per_channel: bool) -> None:
    grey = torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    sample = replace(make(9, 9, 3, 0), image=grey.repeat(3, 1, 1))
    jitter = Augmentation(hflip=0, brightness=0.1, contrast=0.1, gamma=0.1, per_channel=per_channel)
    red, green, blue = augment(sample, jitter, torch.Generator().manual_seed(0)).image
    assert torch.equal(red, green) == torch.equal(green, blue) == (not per_channel)


def test_brightness_alone_shifts() -> None:
    image = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.4
    sample = replace(make(5, 6, 0, 0), image=image)
    shifted = augment(sample, Augmentation(hflip=0, brightness=0.1), torch.Generator().manual_seed(3)).image
    difference = shifted - image
    assert difference.max() - difference.min() < 1e-6
    assert 0 < difference.abs().max() <= 0.1


def test_mask_boxes() -> None:
    sample = make(20, 15, 6, 4)
    assert torch.equal(mask_boxes(sample.target["masks"]), tight_boxes(sample.target["masks"]))
    assert mask_boxes(torch.zeros(0, 4, 5, dtype=torch.uint8)).shape == (0, 4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hflip", 1.5),
        ("vflip", -0.1),
        ("scale", (0.0, 1.0)),
        ("scale", (2.0, 1.0)),
        ("crop", (0, 5)),
        ("gamma", -1.0),
        ("brightness", float("nan")),
        ("min_area", -1),
    ],
)
def test_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        Augmentation(**{field: value})  # type: ignore[arg-type]

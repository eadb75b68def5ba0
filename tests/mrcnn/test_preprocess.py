"""Batches and targets against torchvision's transform."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from kernels import mask_loss
from mrcnn import PRESETS
from mrcnn.preprocess import make_batch, make_targets

Scene = Callable[..., tuple[Tensor, dict[str, Tensor]]]
CONFIG = replace(PRESETS["mask_rcnn_r50_fpn"], min_size=100, max_size=170)
# Enlarged, reduced, limited by the long side, standing, and as it is.
SIZES = [(60, 80), (230, 352), (90, 300), (171, 111), (100, 128)]


def transform() -> GeneralizedRCNNTransform:
    config = CONFIG
    return GeneralizedRCNNTransform(
        config.min_size, config.max_size, list(config.image_mean), list(config.image_std)
    ).eval()


@pytest.mark.parametrize("sizes", [SIZES, SIZES[1:2], SIZES[2:3]])
def test_batch_and_targets_are_torchvisions(scene: Scene, sizes: list[tuple[int, int]]) -> None:
    scenes = [scene(*size, objects=3 + k, seed=k) for k, size in enumerate(sizes)]
    images, targets = [image for image, _ in scenes], [target for _, target in scenes]
    theirs, their_targets = transform()(images, targets)
    batch = make_batch(images, CONFIG)
    assert torch.equal(batch.images, theirs.tensors)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.resized_sizes == theirs.image_sizes
    assert batch.sizes.tolist() == [list(size) for size in theirs.image_sizes]
    assert batch.original_sizes == sizes
    ours = make_targets(targets, batch, 4)
    assert ours.counts.tolist() == [len(target["labels"]) for target in targets]
    for image, (expected, (height, width)) in enumerate(zip(their_targets, theirs.image_sizes, strict=True)):
        number = len(expected["labels"])
        assert torch.equal(ours.boxes[image, :number], expected["boxes"])
        assert torch.equal(ours.labels[image, :number], expected["labels"])
        assert torch.equal(ours.masks[image, :number, :height, :width], expected["masks"])
        assert expected["masks"].any()
        assert not ours.boxes[image, number:].any()
        assert not ours.labels[image, number:].any()
        assert not ours.masks[image, number:].any()


def test_masks_at_the_border_give_torchvisions_mask_targets(scene: Scene) -> None:
    """torchvision crops masks that end with the image, ours end with the batch."""
    image, target = scene(230, 352, objects=1, seed=0)
    target["masks"][:] = 0
    target["masks"][0, 150:, 200:] = 1
    batch = make_batch([image], CONFIG)
    height, width = batch.resized_sizes[0]
    assert height < batch.images.shape[2]
    assert width < batch.images.shape[3]
    masks = make_targets([target], batch, 4).masks[0]
    boxes = torch.tensor([[width - 20.0, height - 30.0, width, height], [width - 9.3, 10.0, width, height]])
    expected = project_masks_on_boxes(masks[:, :height, :width], boxes, torch.tensor([0, 0]), 28)
    for box, wanted in zip(boxes, expected, strict=True):
        logits = torch.zeros(1, 1, 28, 28, dtype=torch.float64, requires_grad=True)
        none = torch.tensor([0])
        mask_loss(logits, none, box[None], masks, none).backward()
        # The derivative of the mean cross-entropy at 0 is (1/2 - target) / 28^2.
        torch.testing.assert_close(0.5 - logits.grad[0, 0] * 28**2, wanted.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("counts", [[0], [0, 0], [0, 3], [2, 0]])
def test_images_without_objects(scene: Scene, counts: list[int]) -> None:
    scenes = [scene(60, 80, objects=count, seed=k) for k, count in enumerate(counts)]
    batch = make_batch([image for image, _ in scenes], CONFIG)
    targets = make_targets([target for _, target in scenes], batch, 4)
    assert targets.counts.tolist() == counts
    assert targets.boxes.shape == (len(counts), max(counts), 4)
    assert targets.masks.shape == (len(counts), max(counts), *batch.images.shape[2:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_batches_keep_the_images_dtype(dtype: torch.dtype) -> None:
    assert make_batch([torch.rand(3, 20, 30).to(dtype)], CONFIG).images.dtype == dtype


def test_a_sliver_keeps_a_pixel() -> None:
    assert make_batch([torch.rand(3, 1, 400)], CONFIG).resized_sizes == [(1, 170)]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images is empty"),
        ([torch.rand(1, 20, 30)], r"\(1, 20, 30\).*must be 3 x H x W"),
        ([torch.rand(20, 30)], r"\(20, 30\).*must be 3 x H x W"),
        ([torch.zeros(3, 20, 30, dtype=torch.uint8)], "uint8.*floats from 0 to 1"),
        ([torch.rand(3, 0, 30)], "must have pixels"),
    ],
)
def test_bad_images_are_named(images: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_batch(images, CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": None}, "must have boxes, labels and masks"),
        ({"boxes": torch.ones(2, 5)}, r"boxes is \(2, 5\)"),
        ({"labels": torch.ones(3)}, r"labels is \(3,\).*must be \(2,\)"),
        ({"masks": torch.zeros(2, 60, 81)}, r"masks is \(2, 60, 81\).*must be \(2, 60, 80\)"),
        ({"boxes": torch.tensor([[0, 0, 5, 5], [5, 5, 5, 9.0]])}, "no area"),
        ({"boxes": torch.tensor([[0, 0, 5, 5], [0, 0, 5, float("nan")]])}, "not finite"),
        ({"boxes": torch.tensor([[0, 0, 5, 5], [0, 0, float("inf"), 5]])}, "not finite"),
    ],
)
def test_bad_targets_are_named(scene: Scene, change: dict[str, Tensor | None], message: str) -> None:
    image, target = scene(60, 80, objects=2, seed=0)
    batch = make_batch([image], CONFIG)
    changed = {name: value for name, value in {**target, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        make_targets([changed], batch, 4)


def test_each_image_needs_a_target(scene: Scene) -> None:
    image, target = scene(60, 80, objects=2, seed=0)
    with pytest.raises(ValueError, match="2 entries; it must have one for each of 1 images"):
        make_targets([target, target], make_batch([image], CONFIG), 4)

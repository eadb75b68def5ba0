"""The whole model: what goes in, what comes out, and that every part of it learns."""

from collections.abc import Callable

import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from mrcnn import PRESETS, MaskRCNN, build_model
from mrcnn.preprocess import Batch, Targets, make_batch, make_targets

Build = Callable[..., MaskRCNN]
Scene = Callable[..., tuple[Tensor, dict[str, Tensor]]]
LOSSES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
SIZES = [(70, 100), (96, 80), (60, 60)]


def scenes(scene: Scene, counts: list[int], num_classes: int = 4) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    made = [scene(*SIZES[k], objects=count, seed=k, num_classes=num_classes) for k, count in enumerate(counts)]
    return [image for image, _ in made], [target for _, target in made]


def prepared(model: MaskRCNN, scene: Scene, counts: list[int]) -> tuple[Batch, Targets]:
    images, targets = scenes(scene, counts)
    batch = make_batch(images, model.config)
    return batch, make_targets(targets, batch, model.config.num_classes)


@pytest.mark.parametrize("counts", [[4], [3, 0, 5], [0, 0]])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_losses_are_finite_and_reach_every_parameter(
    small_model: Build, scene: Scene, counts: list[int], num_classes: int
) -> None:
    model = small_model(num_classes).train()
    losses = model(*scenes(scene, counts, num_classes))
    assert losses.keys() == LOSSES
    assert all(loss.shape == () and torch.isfinite(loss) for loss in losses.values())
    objects = sum(counts) > 0
    for name, loss in losses.items():
        assert (loss > 0) == (objects or name in ("loss_objectness", "loss_classifier")), name
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        learns = objects or not name.startswith(("roi_heads.mask", "roi_heads.box.offsets", "rpn.offsets"))
        assert parameter.grad.any() == learns, name


def test_frozen_norms_of_the_paper_get_gradients_through(scene: Scene) -> None:
    model = build_model("mask_rcnn_r50_fpn", 4, min_size=64, max_size=64, roi_samples=16, mask_convs=1).train()
    sum(model(*scenes(scene, [2])).values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.backbone.conv1.weight.grad.any()
    assert not any("bn" in name for name, _ in model.named_parameters())


def test_a_few_steps_lower_the_loss(small_model: Build, scene: Scene) -> None:
    model = small_model().train()
    images, targets = scenes(scene, [4, 3])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    torch.manual_seed(0)
    history = []
    for _ in range(12):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-3:]) < 0.7 * sum(history[:3])


def test_more_objects_than_sampled_rois(small_model: Build, scene: Scene) -> None:
    model = small_model(roi_samples=16, rpn_samples=8).train()
    losses = model(*scenes(scene, [40, 1]))
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("counts", [[3, 0, 5], [0, 0]])
def test_trimming_changes_no_loss_and_no_gradient(small_model: Build, scene: Scene, counts: list[int]) -> None:
    model = small_model(proposals_train=20, roi_samples=128).double().train()
    batch, targets = prepared(model, scene, counts)
    batch = Batch(batch.images.double(), batch.sizes, batch.original_sizes, batch.resized_sizes)
    results = []
    for trim in (False, True):
        torch.manual_seed(0)
        losses = model.losses(batch, targets, trim=trim)
        model.zero_grad()
        sum(losses.values()).backward()
        results.append((losses, {name: p.grad.clone() for name, p in model.named_parameters()}))
    (losses, gradients), (trimmed_losses, trimmed_gradients) = results
    for name in LOSSES:
        torch.testing.assert_close(trimmed_losses[name], losses[name], rtol=1e-12, atol=0)
    for name, gradient in gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(trimmed_gradients[name], gradient, rtol=0, atol=1e-11 * scale + 1e-300, msg=name)


def test_trimming_changes_no_detection(small_model: Build, scene: Scene) -> None:
    model = small_model(detections_per_image=200, box_score_threshold=0.5, proposals_test=400).double().eval()
    batch, _ = prepared(model, scene, [3, 4, 2])
    batch = Batch(batch.images.double(), batch.sizes, batch.original_sizes, batch.resized_sizes)
    full, full_masks = model.detect(batch)
    trimmed, trimmed_masks = model.detect(batch, trim=True)
    assert torch.equal(trimmed.counts, full.counts)
    assert full.boxes.shape[1] == 200
    assert full_masks.shape[:2] == (3, 200)
    assert 0 < trimmed.boxes.shape[1] == full.counts.max() < 200
    for image, count in enumerate(full.counts.tolist()):
        assert torch.equal(trimmed.labels[image, :count], full.labels[image, :count])
        for mine, reference in (
            (trimmed.boxes, full.boxes),
            (trimmed.scores, full.scores),
            (trimmed_masks, full_masks),
        ):
            torch.testing.assert_close(mine[image, :count], reference[image, :count], rtol=0, atol=1e-10)


def test_detections_of_images_of_different_size(small_model: Build, scene: Scene) -> None:
    """In a batch, padded, each image has the detections that torchvision's format promises; twice the same."""
    model = small_model(box_score_threshold=0.3).eval()
    images, _ = scenes(scene, [3, 4, 0])
    results = model(images)
    for image, result in zip(images, results, strict=True):
        height, width = image.shape[1:]
        number = len(result["scores"])
        assert 0 < number <= 30
        assert result["masks"].shape == (number, 1, height, width)
        assert result["labels"].dtype == torch.int64
        assert 1 <= result["labels"].min() <= result["labels"].max() <= 3
        assert (result["scores"].diff() <= 0).all()
        boxes = result["boxes"]
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([width, height]) + 1e-4).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert not any(value.requires_grad for value in result.values())
    for once, again in zip(results, model(images), strict=True):
        assert all(torch.equal(once[key], again[key]) for key in once)


def test_an_images_detections_do_not_depend_on_its_neighbours(small_model: Build, scene: Scene) -> None:
    model = small_model(box_score_threshold=0.3).double().eval()
    image = scene(96, 128, objects=3, seed=0)[0].double()  # needs no padding, so that all convolutions see the same
    other = scene(96, 96, objects=2, seed=1)[0].double()
    (alone,), (together, _) = model([image]), model([image, other])
    assert len(alone["scores"]) > 0
    for key in alone:
        torch.testing.assert_close(together[key], alone[key], rtol=0, atol=1e-9)


def test_formats_of_masks(small_model: Build, scene: Scene) -> None:
    model = small_model(box_score_threshold=0.3).eval()
    images, _ = scenes(scene, [3, 2])
    formats = {name: model(images, mask_format=name) for name in ("prob", "bool", "rle", "crop")}
    for image in range(2):
        probability, whole, rle, crop = (formats[name][image]["masks"] for name in ("prob", "bool", "rle", "crop"))
        assert len(probability) > 0
        assert torch.equal(whole, probability[:, 0] > 0.5)
        decoded = [torch.from_numpy(coco_mask.decode(each)).bool() for each in rle]
        assert torch.equal(torch.stack(decoded), whole)
        assert crop.shape == (len(whole), 28, 28)


def test_an_image_without_detections(small_model: Build, scene: Scene) -> None:
    model = small_model(box_score_threshold=1.0).eval()
    images, _ = scenes(scene, [3, 2])
    shapes = {"prob": (0, 1, 70, 100), "bool": (0, 70, 100), "crop": (0, 28, 28)}
    for name, shape in shapes.items():
        first, _ = model(images, mask_format=name)
        assert first["masks"].shape == shape
        assert first["boxes"].shape == (0, 4)
    assert model(images, mask_format="rle")[0]["masks"] == []


def test_what_is_wrong_is_named(small_model: Build, scene: Scene) -> None:
    model = small_model()
    images, targets = scenes(scene, [2])
    with pytest.raises(ValueError, match=r"targets is None.*model.eval\(\)"):
        model.train()(images)
    with pytest.raises(ValueError, match="must have one for each of 1 images"):
        model(images, targets * 2)
    with pytest.raises(ValueError, match="images is empty"):
        model.eval()([])
    with pytest.raises(ValueError, match="mask_format is 'polygon'"):
        model(images, mask_format="polygon")
    for labels, seen in (([1, 4], "from 1 to 4"), ([0, 3], "from 0 to 3"), ([-1, 3], "from -1 to 3")):
        with pytest.raises(ValueError, match=f"labels are {seen}; with 4 classes they must be from 1 to 3"):
            model.train()(images, [{**targets[0], "labels": torch.tensor(labels)}])


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (("mask_rcnn_r51_fpn",), {}, "name is 'mask_rcnn_r51_fpn'; it must be one of"),
        (("mask_rcnn_r50_fpn", 1), {}, "num_classes is 1; it counts the background"),
        (("mask_rcnn_r50_fpn",), {"min_sise": 1, "max_size": 2}, "min_sise is no field"),
    ],
)
def test_no_such_model(arguments: tuple[str, int], changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(*arguments, **changes)


def test_presets_are_the_papers_model() -> None:
    """Numbers from Mask R-CNN, section 3.1, and FPN, section 4.1."""
    config = PRESETS["mask_rcnn_r50_fpn"]
    assert (config.min_size, config.max_size, config.num_classes, config.resnet_depth) == (800, 1333, 91, 50)
    assert config.anchor_sizes == (32, 64, 128, 256, 512)
    assert config.anchor_ratios == (0.5, 1.0, 2.0)
    assert (config.roi_samples, config.roi_positive_fraction, config.mask_slots) == (512, 0.25, 128)
    assert (config.box_pool, config.mask_pool, config.detections_per_image) == (7, 14, 100)
    assert all(name == preset.name for name, preset in PRESETS.items())


def test_convolutions_are_channels_last(small_model: Build) -> None:
    model = small_model()
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)

"""Training and inference trace without a question to the host: nothing but shapes decides what runs."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from mrcnn import MaskRCNN, build_model
from mrcnn.preprocess import Batch, Targets, make_batch, make_targets

Build = Callable[..., MaskRCNN]
Scene = Callable[..., tuple[Tensor, dict[str, Tensor]]]
ASKED_THE_HOST = (DataDependentOutputException, DynamicOutputShapeException)


def as_fake(model: MaskRCNN, mode: FakeTensorMode) -> MaskRCNN:
    """The same model whose weights have shapes but no values."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(mode.from_tensor(parameter.detach())))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, mode.from_tensor(buffer))
    return model


def as_fake_data(batch: Batch, targets: Targets, mode: FakeTensorMode) -> tuple[Batch, Targets]:
    fake_batch = Batch(
        mode.from_tensor(batch.images), mode.from_tensor(batch.sizes), batch.original_sizes, batch.resized_sizes
    )
    parts = (targets.boxes, targets.labels, targets.masks, targets.counts)
    return fake_batch, Targets(*map(mode.from_tensor, parts))


def prepared(model: MaskRCNN, scene: Scene, counts: list[int]) -> tuple[Batch, Targets]:
    sizes = [(70, 100), (96, 80), (60, 60)]
    made = [scene(*sizes[k], objects=count, seed=k) for k, count in enumerate(counts)]
    batch = make_batch([image for image, _ in made], model.config)
    return batch, make_targets([target for _, target in made], batch, model.config.num_classes)


@pytest.fixture(params=["group norm", "paper"])
def model(request: pytest.FixtureRequest, small_model: Build) -> MaskRCNN:
    """A small model, and the paper's at a small input."""
    if request.param == "group norm":
        return small_model()
    return build_model("mask_rcnn_r50_fpn", min_size=96, max_size=128)


@pytest.mark.parametrize("counts", [[3, 0, 5], [0, 0]])
def test_training_asks_nothing(model: MaskRCNN, scene: Scene, counts: list[int]) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    fake = as_fake(model.train(), mode)
    batch, targets = as_fake_data(*prepared(model, scene, counts), mode)
    with mode:
        losses = fake.losses(batch, targets)
        torch.stack(list(losses.values())).sum().backward()
    assert len(losses) == 5
    assert all(isinstance(loss, FakeTensor) and loss.shape == () for loss in losses.values())
    for name, parameter in fake.named_parameters():
        assert isinstance(parameter.grad, FakeTensor), name
        assert parameter.grad.shape == parameter.shape, name


def test_inference_asks_nothing(model: MaskRCNN, scene: Scene) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    fake = as_fake(model.eval(), mode)
    batch, _ = as_fake_data(*prepared(model, scene, [3, 0, 5]), mode)
    with mode:
        detections, masks = fake.detect(batch)
    capacity = model.config.detections_per_image
    assert isinstance(detections.boxes, FakeTensor)
    assert detections.boxes.shape == (3, capacity, 4)
    assert detections.labels.shape == detections.scores.shape == (3, capacity)
    assert detections.counts.shape == (3,)
    assert masks.shape == (3, capacity, 28, 28)


def test_shapes_traced_are_the_shapes_computed(small_model: Build, scene: Scene) -> None:
    model, mode = small_model().eval(), FakeTensorMode(allow_non_fake_inputs=False)
    batch, targets = prepared(model, scene, [2, 1])
    real, real_masks = model.detect(batch)
    fake_model, (fake_batch, _) = as_fake(model, mode), as_fake_data(batch, targets, mode)
    with mode:
        fake, fake_masks = fake_model.detect(fake_batch)
    for mine, traced in ((real_masks, fake_masks), *zip(vars(real).values(), vars(fake).values(), strict=True)):
        assert (mine.shape, mine.dtype, mine.stride()) == (traced.shape, traced.dtype, traced.stride())


@pytest.mark.parametrize("training", [False, True])
def test_trimming_does_ask(small_model: Build, scene: Scene, training: bool) -> None:
    """So the tests above would notice."""
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    model = small_model()
    fake = as_fake(model.train(training), mode)
    batch, targets = as_fake_data(*prepared(model, scene, [3, 1]), mode)
    run = partial(fake.losses, batch, targets) if training else partial(fake.detect, batch)
    with mode:
        run()
        with pytest.raises(ASKED_THE_HOST):
            run(trim=True)

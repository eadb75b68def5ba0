"""Training's machinery with a stand-in model: resuming, determinism, stopping, and what it leaves."""

import json
from dataclasses import replace

import pytest
import torch

from mrcnn.data import Augmentation
from mrcnn.engine.checkpoint import CheckpointError, load_weights_into, read_info
from mrcnn.engine.output import OutputError, read_metrics
from mrcnn.engine.recipes import TrainConfig
from mrcnn.engine.train import CHECKPOINT, RESUME, TrainingError, train

CONFIG = TrainConfig(
    steps=12, batch_size=2, lr=0.01, warmup_steps=2, log_every=4, checkpoint_every=0, ema_decay=0.5, seed=3
)


def weights(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def test_what_it_leaves(shapes, stand_in, tmp_path):
    result = train(stand_in(), shapes, CONFIG, tmp_path)
    assert (result.step, result.in_time, result.checkpoint) == (12, True, tmp_path / CHECKPOINT)
    info = read_info(result.checkpoint)
    assert info.class_names == ("background", "round", "square")
    assert info.category_ids == (0, 4, 9)
    assert info.step == 12
    assert info.extra["training"]["lr"] == 0.01
    saved = stand_in()
    load_weights_into(saved, result.checkpoint)
    assert torch.equal(weights(saved), weights(result.model))

    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [4, 8, 12]
    for record in records:
        parts = record["loss_classifier"] + record["loss_mask"]
        assert record["loss"] == pytest.approx(parts, rel=1e-5)
        assert record["images_per_second"] > 0
        assert record["seconds"] > 0
        assert record["grad_norm"] > 0


def test_logged_losses_are_means_of_every_step(shapes, stand_in, tmp_path):
    every = replace(CONFIG, log_every=1)
    train(stand_in(), shapes, every, tmp_path / "every")
    train(stand_in(), shapes, CONFIG, tmp_path / "fourth")
    losses = [record["loss"] for record in read_metrics(tmp_path / "every" / "metrics.jsonl")]
    means = [record["loss"] for record in read_metrics(tmp_path / "fourth" / "metrics.jsonl")]
    expected = [sum(losses[i : i + 4]) / 4 for i in (0, 4, 8)]
    assert means == pytest.approx(expected, rel=1e-5)


def test_it_learns(shapes, stand_in, tmp_path):
    train(stand_in(), shapes, replace(CONFIG, steps=60, lr=0.05, log_every=10), tmp_path)
    losses = [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[-1] < 0.5 * losses[0]


def test_the_seed_decides_everything(shapes, stand_in, tmp_path):
    def run(name, seed):
        torch.rand(7)  # the caller's use of chance must not matter
        config = replace(CONFIG, seed=seed)
        return weights(train(stand_in(), shapes, config, tmp_path / name, augmentation=Augmentation()).model)

    assert torch.equal(run("a", 1), run("b", 1))
    assert not torch.equal(run("c", 1), run("d", 2))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_resumed_training_equals_one_that_never_stopped(shapes, stand_in, tmp_path, optimizer, ema_decay):
    config = replace(CONFIG, optimizer=optimizer, ema_decay=ema_decay, checkpoint_every=5)
    whole = train(stand_in(), shapes, config, tmp_path / "whole", augmentation=Augmentation())

    class Killed(Exception):
        pass

    class Fragile(type(stand_in())):
        def forward(self, images, targets=None, mask_format="prob"):
            if self.seen == 7:
                raise Killed
            return super().forward(images, targets, mask_format)

    torch.manual_seed(0)
    with pytest.raises(Killed):
        train(Fragile(), shapes, config, tmp_path / "parts", augmentation=Augmentation())
    assert read_info(tmp_path / "parts" / CHECKPOINT).step == 5
    torch.manual_seed(99)
    parts = train(stand_in(), shapes, config, tmp_path / "parts", augmentation=Augmentation(), resume=True)
    assert parts.step == 12
    assert torch.equal(weights(parts.model), weights(whole.model))
    logs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    losses = [{record["step"]: record["loss"] for record in log} for log in logs]
    assert losses[0] == losses[1]
    seconds = [record["seconds"] for record in logs[1]]
    assert seconds == sorted(seconds)


def test_resuming_a_finished_training_does_nothing(shapes, stand_in, tmp_path):
    done = train(stand_in(), shapes, CONFIG, tmp_path)
    again = train(stand_in(), shapes, CONFIG, tmp_path, resume=True)
    assert again.step == 12
    assert torch.equal(weights(again.model), weights(done.model))


def test_resuming_what_does_not_fit(shapes, stand_in, tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(stand_in(), shapes, CONFIG, tmp_path, resume=True)
    train(stand_in(), shapes, CONFIG, tmp_path)
    with pytest.raises(CheckpointError, match=f"{RESUME}: does not fit this training"):
        train(stand_in(num_classes=4), shapes, CONFIG, tmp_path, resume=True)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_it_stops_at_a_loss_or_gradient_that_is_not_finite(shapes, stand_in, tmp_path, where):
    class Wild(type(stand_in())):
        def forward(self, images, targets=None, mask_format="prob"):
            losses = super().forward(images, targets, mask_format)
            if self.seen == 12:
                zero = (self.head.weight * 0).sum()
                # The square root's slope at zero is infinite while its value is not.
                losses["loss_mask"] = losses["loss_mask"] + (zero.log() if where == "loss" else zero.sqrt())
            return losses

    config = replace(CONFIG, checkpoint_every=6)
    with pytest.raises(TrainingError) as error:
        train(Wild(), shapes, config, tmp_path)
    message = str(error.value)
    assert "stopped at step 12" in message
    assert ("loss_mask" in message) == (where == "loss")
    assert "grad_norm" in message
    assert "the checkpoint is of step 6" in message
    assert "--lr, 0.01 now" in message
    saved = stand_in()
    assert load_weights_into(saved, tmp_path / CHECKPOINT).step == 6
    assert torch.isfinite(weights(saved)).all()


def test_it_ends_in_time_and_can_go_on(shapes, stand_in, tmp_path):
    config = replace(CONFIG, max_seconds=1e-6)
    result = train(stand_in(), shapes, config, tmp_path)
    assert (result.step, result.in_time) == (1, False)
    assert read_info(result.checkpoint).step == 1
    assert train(stand_in(), shapes, CONFIG, tmp_path, resume=True).step == 12


def test_it_evaluates_on_the_way(shapes, stand_in, tmp_path):
    train(stand_in(), shapes, replace(CONFIG, eval_every=5), tmp_path, validation=shapes)
    evaluations = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "eval" in r]
    assert [record["step"] for record in evaluations] == [5, 10]
    assert evaluations[0]["eval"]["segm"]["AP"] == 0  # the stand-in finds nothing
    plain = train(stand_in(), shapes, CONFIG, tmp_path / "plain").model
    evaluated = stand_in()
    load_weights_into(evaluated, tmp_path / CHECKPOINT)
    assert torch.equal(weights(plain), weights(evaluated))


def test_clipping_bounds_the_step(shapes, stand_in, tmp_path):
    config = TrainConfig(
        steps=1, optimizer="sgd", momentum=0.0, lr=1.0, weight_decay=0.0, warmup_steps=0, clip_norm=1e-3
    )
    model = stand_in()
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    train(model, shapes, config, tmp_path)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_bfloat16(shapes, stand_in, tmp_path):
    result = train(stand_in(), shapes, replace(CONFIG, precision="bf16"), tmp_path)
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
    exact = train(stand_in(), shapes, replace(CONFIG, precision="fp32"), tmp_path / "exact")
    assert not torch.equal(weights(result.model), weights(exact.model))


def test_bad_arguments_are_found_before_training(shapes, stand_in, tmp_path):
    with pytest.raises(ValueError, match="model has 2 classes and must have at least the data set's 3"):
        train(stand_in(num_classes=2), shapes, CONFIG, tmp_path / "out")
    (tmp_path / "file").write_text("")
    model = stand_in()
    with pytest.raises(OutputError):
        train(model, shapes, CONFIG, tmp_path / "file" / "out")
    assert model.seen == 0


def test_metrics_are_plain_json(shapes, stand_in, tmp_path):
    train(stand_in(), shapes, CONFIG, tmp_path)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert all(isinstance(value, int | float) for value in json.loads(line).values())

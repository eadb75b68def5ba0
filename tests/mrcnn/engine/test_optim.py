"""Schedules by hand, decay where it belongs, and the moving average against its closed form."""

import math

import pytest
import torch
from torch import nn

from mrcnn.engine.optim import (
    MovingAverage,
    learning_rate,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
)
from mrcnn.engine.recipes import TrainConfig


def test_cosine_schedule_by_hand():
    config = TrainConfig(steps=100, lr=2.0, warmup_steps=3, schedule="cosine")
    assert learning_rate(config, 0) == pytest.approx(2.0 / 4)
    assert learning_rate(config, 1) == pytest.approx(2.0 * 2 / 4 * (1 + math.cos(math.pi / 100)) / 2)
    assert learning_rate(config, 50) == pytest.approx(1.0)
    assert learning_rate(config, 75) == pytest.approx(1 - math.sqrt(0.5))


def test_multistep_schedule_by_hand():
    config = TrainConfig(
        steps=90, lr=0.02, warmup_steps=0, schedule="multistep", milestones=(2 / 3, 8 / 9), optimizer="sgd"
    )
    rates = [learning_rate(config, step) for step in (0, 59, 60, 79, 80, 89)]
    assert rates == pytest.approx([0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_decay_moves_weights_but_not_norms_and_biases(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 3, 5, 5))
    nn.init.ones_(model[0].bias)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(optimizer=name, lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter_name, parameter in model.named_parameters():
        decays = parameter_name in ("0.weight", "3.weight")
        expected = before[parameter_name] * (0.95 if decays else 1)
        torch.testing.assert_close(parameter.detach(), expected)


def test_frozen_parameters_are_left_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = make_optimizer(model, TrainConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    with pytest.raises(ValueError, match="no parameter that is trained"):
        make_optimizer(model.requires_grad_(False), TrainConfig())


def test_moving_average_against_its_recurrence():
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 0.0)
    average = MovingAverage(model, decay=0.5)
    expected = 0.0
    for step, value in enumerate([1.0, 3.0, -2.0, 5.0, 5.0, 8.0, 1.0, 1.0, 1.0, 4.0, 4.0]):
        nn.init.constant_(model.weight, value)
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert average.model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert not average.model.weight.requires_grad


def test_moving_average_copies_buffers():
    model = nn.BatchNorm2d(2)
    average = MovingAverage(model, decay=0.9)
    model.running_mean.fill_(3)
    average.update(model, 100)
    assert average.model.running_mean.tolist() == [3, 3]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_restored_optimizer_goes_on_as_if_never_stopped(name):
    config = TrainConfig(optimizer=name, lr=0.05, momentum=0.9)
    inputs = torch.randn(12, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)

    def steps(net, optimizer, batches):
        for batch in batches:
            optimizer.zero_grad()
            net(batch).square().mean().backward()
            optimizer.step()

    whole = model()
    steps(whole, make_optimizer(whole, config), inputs)

    first = model()
    optimizer = make_optimizer(first, config)
    steps(first, optimizer, inputs[:6])
    # Files hold contiguous tensors; the parameters are channels last.
    state = {name: value.contiguous().clone() for name, value in optimizer_tensors(first, optimizer).items()}
    second = model()
    second.load_state_dict(first.state_dict())
    resumed = make_optimizer(second, config)
    restore_optimizer(second, resumed, state)
    steps(second, resumed, inputs[6:])
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.isfinite(a).all()
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("batch_size", 0), ("lr", 0.0), ("lr", float("nan")), ("ema_decay", 1.0), ("seed", -1)],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} is "):
        TrainConfig(**{name: value})

"""The parts of an optimizer step: parameter groups, the learning rate of a step, the average of weights."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from mrcnn.engine.recipes import TrainConfig

Model = TypeVar("Model", bound=nn.Module)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """An optimizer over the parameters that are trained.

    Weight decay is for tensors of two dimensions and more: one-dimensional ones are biases and the weights of
    norms, where a pull to zero has no use.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("model has no parameter that is trained: all have requires_grad=False")
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # One pass over memory per step instead of one per operation; other devices lack it.
    fused = trained[0].device.type in ("cpu", "cuda")
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, fused=fused)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up times the schedule."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    progress = step / config.steps
    if config.schedule == "cosine":
        return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * warmup * math.prod(0.1 for milestone in config.milestones if progress >= milestone)


class MovingAverage(Generic[Model]):
    """Exponential moving average of a model's weights, as a model of its own for evaluation.

    Early on the average follows the weights more closely (decay of step t at most (1 + t) / (10 + t)), so
    that a short training does not end as an average with its own random start.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: Model, step: int) -> None:
        """Moves the average towards the weights after a step, counted from 0."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, weight)
        for copied, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            copied.copy_(buffer)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: `<parameter>|<what>`."""
    return {
        f"{name}|{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave, in the memory layout and on the device of each parameter.

    The layout matters: fused optimizers walk parameter and state side by side in memory.
    """
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        name, key = full_name.rsplit("|", 1)
        parameter = parameters[name]
        if value.shape == parameter.shape:
            state = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        else:  # AdamW's step count
            state = value.to(parameter.device)
        optimizer.state[parameter][key] = state

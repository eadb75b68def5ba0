"""Rounding that decides what is equal and what is above."""

import math

import torch


def float32_at_most(value: float) -> float:
    """The largest float32 that is at most the value: any float32 is above both or neither.

    So float32 overlaps compare with a threshold as given, as in torchvision on a CPU, and not with its rounding.
    """
    nearest = torch.tensor(value, dtype=torch.float32, device="cpu")
    if nearest.item() > value:
        nearest = torch.nextafter(nearest, torch.tensor(-math.inf, dtype=torch.float32, device="cpu"))
    return nearest.item()

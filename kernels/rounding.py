"""Rounding that decides what is equal and what is above."""

import numpy as np


def float32_at_most(value: float) -> float:
    """The largest float32 that is at most the value: any float32 is above both or neither.

    So float32 overlaps compare with a threshold as given, as in torchvision on a CPU, and not with its rounding.
    """
    nearest = np.float32(value)
    return float(nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(-np.inf)))

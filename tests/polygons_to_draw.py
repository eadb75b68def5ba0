"""Polygons that tests of several directories draw, and how pycocotools draws them."""

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

Instances = list[list[list[float]]]


def some_instances(number: int, height: int, width: int, seed: int = 0) -> Instances:
    """Multi-part, self-crossing, tiny, outside, on pixel corners and middles, on fifths and halves of them."""
    random = np.random.default_rng(seed)
    instances = []
    for _ in range(number):
        parts = []
        for _ in range(random.integers(1, 4)):
            corners = random.integers(3, 12)
            scale = random.choice([0.7, 3.0, 15.0, 60.0])
            center = random.uniform(-5, [width + 5, height + 5])
            points = center + scale * random.standard_normal((corners, 2))
            grid = random.choice([0.0, 0.1, 0.2, 0.5, 1.0])
            parts.append((np.round(points / grid) * grid if grid else points).ravel().tolist())
        instances.append(parts)
    return instances


def pycocotools(instances: Instances, height: int, width: int) -> Tensor:
    masks = [coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(each, height, width))) for each in instances]
    return torch.from_numpy(np.stack(masks))

"""Keypoints out of heatmaps, each resized to its box as a whole: Keys' cubic convolution (1981) with a = -0.75."""

import math
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

_LONGEST = 32768


def decode_keypoints(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.decode_keypoints`. heatmaps: [K, N, H, W], boxes: [K, 4]; keypoints [K, N, 3], scores [K, N]."""
    compute = torch.promote_types(heatmaps.dtype, torch.float32)
    keypoints = heatmaps.new_zeros((*heatmaps.shape[:2], 3), dtype=compute)
    scores = heatmaps.new_zeros(heatmaps.shape[:2], dtype=compute)
    for roi, box in enumerate(boxes.to(compute)):
        side = (box[2:] - box[:2]).clamp(min=1)
        if not (box.isfinite().all() and (side <= _LONGEST).all()):
            continue
        width, height = (math.ceil(each) for each in side.tolist())
        for keypoint, heatmap in enumerate(heatmaps[roi].to(compute)):
            resized = _lengthened(_lengthened(heatmap.t(), width).t(), height)
            y, x = divmod(int(resized.flatten().argmax()), width)
            keypoints[roi, keypoint, 0] = (x + 0.5) * (side[0] / width) + box[0]
            keypoints[roi, keypoint, 1] = (y + 0.5) * (side[1] / height) + box[1]
            keypoints[roi, keypoint, 2] = 1
            scores[roi, keypoint] = resized[y, x]
    return keypoints, scores


def _lengthened(rows: Tensor, length: int) -> Tensor:
    """Rows [size, ...] resized to [length, ...]."""
    index, weight = _taps(length, rows.shape[0])
    weights, places = rows.new_tensor(weight), rows.new_tensor(index, dtype=torch.int64)
    return sum((weights[:, tap, None] * rows[places[:, tap]] for tap in range(4)), rows.new_zeros(()))


@lru_cache(maxsize=1024)
def _taps(length: int, size: int) -> tuple[list[list[int]], list[list[float]]]:
    """Index and weight of the four pixels around each of `length` places, which are not rounded."""
    index, weights = [], []
    for pixel in range(length):
        place = Fraction((2 * pixel + 1) * size, 2 * length) - Fraction(1, 2)
        around = [math.floor(place) + tap for tap in (-1, 0, 1, 2)]
        index.append([min(max(each, 0), size - 1) for each in around])
        weights.append([float(_cubic(abs(place - each))) for each in around])
    return index, weights


def _cubic(distance: Fraction) -> Fraction:
    a = Fraction(-3, 4)
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4)

"""Heatmaps and boxes for the tests of keypoints, and how they are compared with torchvision's in float64."""

from typing import Any

import numpy as np
import torch
from error_rule import assert_error_rule
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

from kernels import decode_keypoints

# Larger and smaller than a heatmap, whole pixels, narrow, flat, less than a pixel, turned inside out.
BOXES = torch.tensor(
    [
        [3.3, 4.1, 40.7, 75.2],
        [-10.3, -5, 2.4, 3.9],
        [5, 6, 19, 20],
        [0.2, 0.1, 3.4, 61],
        [0.2, 0.1, 61, 3.4],
        [1.2, 1.1, 1.7, 1.4],
        [9, 9, 5, 20],
    ]
)


def some_heatmaps(height: int = 14, width: int = 14, keypoints: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((len(BOXES), keypoints, height, width), generator=generator).to(dtype)


def check(heatmaps: Tensor, boxes: Tensor) -> None:
    """The public function by torchvision's: places exact but where rounding decides which pixel is the largest."""
    compute = torch.promote_types(heatmaps.dtype, torch.float32)
    keypoints, scores = decode_keypoints(heatmaps, boxes)
    assert (keypoints.dtype, scores.dtype) == (compute, compute)
    # torchvision's places and scores are float32 whatever it is given.
    (true_keypoints, _), (plain_keypoints, _) = (
        heatmaps_to_keypoints(heatmaps.to(each), boxes) for each in (torch.float64, compute)
    )
    true_scores, lead = largest_and_lead(heatmaps, boxes)
    plain_scores = largest(heatmaps.to(compute), boxes)
    assert_error_rule(scores, true_scores, plain_scores, compute)
    sure = lead > 1e-5 * true_scores.abs().clamp(min=1)
    assert sure.float().mean() > 0.9
    assert_error_rule(keypoints[sure].float(), true_keypoints[sure].double(), plain_keypoints[sure], torch.float32)
    # A pixel beside would be off by about 1.
    assert (keypoints[sure] - true_keypoints[sure]).abs().max() < 1e-3


def sides(box: Tensor) -> tuple[int, int]:
    """Width and height in pixels."""
    width, height = (box[2:] - box[:2]).clamp(min=1).ceil().int().tolist()
    return width, height


def largest(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """The largest value of each resized heatmap [K, N], by PyTorch."""
    values = []
    for heatmap, box in zip(heatmaps, boxes, strict=True):
        resized = interpolate(heatmap[None], size=sides(box)[::-1], mode="bicubic", align_corners=False)
        values.append(resized[0].flatten(1).amax(dim=1))
    return torch.stack(values)


def largest_and_lead(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The same in numpy's extended precision, rounded to float64, and by how much it is larger than any other value."""
    values, lead = [], []
    for heatmap, box in zip(heatmaps.double().numpy(), boxes, strict=True):
        columns, rows = (_exact_weights(*pair) for pair in zip(sides(box), heatmap.shape[:0:-1], strict=True))
        resized = np.sort((rows @ heatmap.astype(np.longdouble) @ columns.T).reshape(len(heatmap), -1), axis=1)
        values.append(resized[:, -1])
        lead.append(resized[:, -1] - resized[:, -2] if resized.shape[1] > 1 else np.ones(len(heatmap)))
    result, distance = (torch.from_numpy(np.stack(each).astype(np.float64)) for each in (values, lead))
    return result, distance


def _exact_weights(length: int, size: int) -> Any:
    """Keys' cubic convolution with a = -0.75, border pixels repeated [length, size]."""
    weights = np.zeros((length, size), dtype=np.longdouble)
    for pixel in range(length):
        position = (np.longdouble(pixel) + 0.5) * size / length - 0.5
        for tap in range(int(np.floor(position)) - 1, int(np.floor(position)) + 3):
            d = abs(position - tap)
            near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            weights[pixel, min(max(tap, 0), size - 1)] += near if d <= 1 else far
    return weights


def check_odd_values() -> None:
    """Equal values: the first of all, row after row. NaN: the first of these. Infinity: as torchvision."""
    nan, inf = float("nan"), float("inf")
    heatmaps = torch.zeros(6, 1, 8, 8)
    heatmaps[1, 0, 5, 1] = heatmaps[1, 0, 2, 6] = heatmaps[1, 0, 2, 5] = 4.0
    heatmaps[2] = -inf
    heatmaps[3, 0, 4, 4] = nan
    heatmaps[4, 0, 4, 4], heatmaps[4, 0, 6, 1] = nan, nan
    heatmaps[5, 0, 3, 3] = inf
    for side in (8.0, 16.0):  # each pixel one or four, so that weights are exact
        boxes = torch.tensor([[10.0, 20, 10 + side, 20 + side]]).repeat(6, 1)
        keypoints, scores = decode_keypoints(heatmaps, boxes)
        expected, expected_scores = heatmaps_to_keypoints(heatmaps, boxes)
        assert torch.equal(keypoints, expected)
        assert torch.equal(scores.nan_to_num(77), expected_scores.nan_to_num(77))
    # Two columns far apart, in different blocks of columns: the row decides.
    heatmaps = torch.zeros(2, 1, 4, 300)
    heatmaps[0, 0, 1, 290] = heatmaps[0, 0, 2, 3] = 1.0
    heatmaps[1, 0, 1, 290] = heatmaps[1, 0, 1, 3] = 1.0
    keypoints, _ = decode_keypoints(heatmaps, torch.tensor([[0.0, 0, 300, 4]]).repeat(2, 1))
    assert keypoints.tolist() == [[[290.5, 1.5, 1]], [[3.5, 1.5, 1]]]


def check_precision() -> None:
    """Far along a heatmap positions in float32 would be off by 1e-6 of a pixel; scores are to a few ulp of the largest
    value, even so."""
    heatmaps = some_heatmaps(40, 56)
    boxes = torch.tensor([[0.0, 0, 91, 37], [0, 0, 117, 61], [0, 0, 13, 99]]).repeat(3, 1)[: len(heatmaps)]
    _, scores = decode_keypoints(heatmaps, boxes)
    true, _ = largest_and_lead(heatmaps, boxes)
    assert (scores.double() - true).abs().max() < 4 * torch.finfo(torch.float32).eps * true.max()


def check_outer_weight() -> None:
    """Of one pixel of -1 the largest value is minus the outer weight at its extreme, 4/3 pixels away: 1/9, by hand."""
    heatmaps = torch.zeros(1, 1, 12, 1)
    heatmaps[0, 0, 5] = -1
    keypoints, scores = decode_keypoints(heatmaps, torch.tensor([[0.0, 0, 1, 36]]))
    assert abs(scores.item() * 9 - 1) < 2 * torch.finfo(torch.float32).eps
    assert keypoints.tolist() == [[[0.5, 12.5, 1]]]


def check_unusable_boxes() -> None:
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor([[nan, 0, 9, 9], [0, 0, inf, 9], [0, -inf, 9, 9], [0, 0, 9, 1e9], [-3e38, 0, 3e38, 9]])
    keypoints, scores = decode_keypoints(torch.ones(5, 2, 6, 6), boxes)
    assert not keypoints.any()
    assert not scores.any()

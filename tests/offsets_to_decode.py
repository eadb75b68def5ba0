"""Offsets, anchors and scores for the tests of decoding, and what torchvision's steps make of them."""

from collections.abc import Sequence

import torch
from error_rule import assert_error_rule
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from kernels import decode_boxes

SIZES = torch.tensor([[60, 170], [120, 90]])
WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]


def some_anchors(number: int) -> Tensor:
    """Two images with sides of 4 to 60, partly off the image, some where nothing is left after clipping."""
    generator = torch.Generator().manual_seed(0)
    low = torch.rand((2, number, 2), generator=generator) * 150 - 30
    return torch.cat([low, low + 4 + torch.rand((2, number, 2), generator=generator) * 56], dim=2)


def some_offsets(*shape: int, weights: Sequence[float] = WEIGHTS[0]) -> Tensor:
    """Some shrink a box to a pixel, some reach the limit of growth."""
    offsets = torch.randn((*shape, 4), generator=torch.Generator().manual_seed(1))
    offsets[..., 2:] *= 2
    return offsets * torch.tensor(weights)


def some_scores(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2))


def expected(
    offsets: Tensor, anchors: Tensor, weights: tuple[float, float, float, float], precision: torch.dtype
) -> Tensor:
    """torchvision's decoded and clipped boxes [B, N, C, 4] of offsets [B, N, C, 4] and anchors [B, N, 4]."""
    images, number, classes, _ = offsets.shape
    coder = BoxCoder(weights)
    decoded = coder.decode(offsets.to(precision).flatten(0, 1).flatten(1), list(anchors.to(precision)))
    per_image = decoded.view(images, number * classes, 4)
    clipped = [
        clip_boxes_to_image(each, (size[0], size[1])) for each, size in zip(per_image, SIZES.tolist(), strict=True)
    ]
    return torch.stack(clipped).view(images, number, classes, 4)


def left(boxes: Tensor, scores: Tensor, min_size: float, score_threshold: float) -> Tensor:
    """Which boxes torchvision keeps [...], of boxes [..., 4]."""
    flat = boxes.flatten(0, -2)
    large = torch.zeros(len(flat), dtype=torch.bool)
    large[remove_small_boxes(flat, min_size)] = True
    return large.view(scores.shape) & (scores > score_threshold)


def check(dtype: torch.dtype, weights: tuple[float, float, float, float], number: int = 200, classes: int = 3) -> None:
    """The public function by torchvision's steps: all classes of shared proposals, as the box head has them."""
    offsets = some_offsets(2, number, classes, weights=weights).to(dtype)
    anchors, scores = some_anchors(number), some_scores(2, number, classes)
    if dtype == torch.float64:
        anchors, scores = anchors.double(), scores.double()
    boxes, kept = decode_boxes(
        offsets.transpose(1, 2),
        anchors[:, None],
        scores.transpose(1, 2),
        SIZES,
        weights=weights,
        min_size=3.0,
        score_threshold=0.3,
    )
    compute = torch.promote_types(dtype, torch.float32)
    assert boxes.dtype == compute
    assert boxes.is_contiguous()
    truth, plain = (expected(offsets, anchors, weights, each).transpose(1, 2) for each in (torch.float64, compute))
    assert_error_rule(boxes, truth, plain, compute)
    by_class = scores.transpose(1, 2)
    good = left(truth, by_class, 3.0, 0.3)
    sides = (truth[..., 2:] - truth[..., :2] - 3.0).abs().amin(dim=-1)
    sure = sides > 1e-3  # a side of 3 itself is on either side by rounding
    assert sure.float().mean() > 0.99
    assert 0.2 < good.float().mean() < 0.8
    assert torch.equal(kept[sure], torch.where(good, by_class, float("-inf"))[sure])

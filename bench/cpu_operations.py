"""CPU time of the eager operations beside torchvision's, each pair in one run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

import kernels
from bench.cases import SCALES, Pyramid, levels_of, proposals, rpn_boxes
from bench.side_by_side import side_by_side

IMAGE = (800, 1333)


@dataclass(frozen=True)
class Pair:
    """Median seconds of one operation, ours and torchvision's."""

    name: str
    ours: float
    torchvision: float

    @property
    def speedup(self) -> float:
        """How many times as fast ours is."""
        return self.torchvision / self.ours


def measure(rounds: int = 5) -> list[Pair]:
    """All pairs; see `bench.cases` for the inputs."""
    functions = {**_roi_align(), **_nms(), **_paste()}
    pairs = []
    for name, (ours, theirs) in functions.items():
        seconds = side_by_side({"ours": ours, "torchvision": theirs}, rounds)
        pairs.append(Pair(name, seconds["ours"], seconds["torchvision"]))
    return pairs


Function = Callable[[], Any]


def _roi_align() -> dict[str, tuple[Function, Function]]:
    pyramid = Pyramid()
    rois, features = proposals(pyramid), pyramid.features()
    trained = [feature.clone(memory_format=torch.preserve_format).requires_grad_() for feature in features]
    contiguous = [feature.contiguous() for feature in features]
    contiguous_trained = [feature.clone().requires_grad_() for feature in contiguous]

    def backward(pooled: Tensor, leaves: list[Tensor], channels_last: bool) -> None:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        torch.autograd.grad(pooled, leaves, torch.ones_like(pooled, memory_format=memory_format))

    def ours(leaves: list[Tensor], size: int) -> Tensor:
        return kernels.multiscale_roi_align(leaves, rois, size, SCALES)

    return {
        "RoIAlign 7x7, forward": (lambda: ours(features, 7), lambda: _their_pooler(contiguous, rois, 7)),
        "RoIAlign 14x14, forward": (lambda: ours(features, 14), lambda: _their_pooler(contiguous, rois, 14)),
        "RoIAlign 7x7, forward and backward": (
            lambda: backward(ours(trained, 7), trained, True),
            lambda: backward(_their_pooler(contiguous_trained, rois, 7), contiguous_trained, False),
        ),
    }


def _their_pooler(features: list[Tensor], rois: Tensor, size: int) -> Tensor:
    """As torchvision's MultiScaleRoIAlign: level by level into one tensor."""
    levels = levels_of(rois)
    pooled = features[0].new_zeros((rois.shape[0], features[0].shape[1], size, size))
    for level, feature in enumerate(features):
        members = torch.nonzero(levels == level)[:, 0]
        part = torchvision.ops.roi_align(feature, rois[members], (size, size), SCALES[level], 2)
        pooled = pooled.index_put((members,), part)
    return pooled


def _nms() -> dict[str, tuple[Function, Function]]:
    boxes, scores = rpn_boxes(5, 2_000)
    classes = torch.arange(5).repeat_interleave(2_000)
    arguments = (boxes.flatten(0, 1), scores.flatten(), classes, 0.7)
    return {
        "batched_nms of 5 x 2,000 boxes": (
            lambda: kernels.batched_nms(*arguments),
            lambda: torchvision.ops.batched_nms(*arguments),
        )
    }


def _paste() -> dict[str, tuple[Function, Function]]:
    generator = torch.Generator().manual_seed(0)
    rois = proposals(Pyramid(images=1), per_image=100)[:, 1:]
    boxes = torch.minimum(rois, torch.tensor([IMAGE[1], IMAGE[0]]).repeat(2).float())
    masks = torch.rand(100, 1, 28, 28, generator=generator)
    return {
        "paste of 100 masks into 800 x 1333": (
            lambda: kernels.paste_masks(masks, boxes, IMAGE),
            lambda: paste_masks_in_image(masks, boxes, IMAGE) > 0.5,
        )
    }

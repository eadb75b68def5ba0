"""CPU time of the eager operations beside torchvision's, each pair in one run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torchvision.models.detection.roi_heads import paste_masks_in_image

import kernels
from bench.cases import SCALES, Pyramid, proposals, rpn_boxes
from bench.error_rule import compare, compare_exactly
from bench.kernel_figures.cases import Case, both, torchvision_pooler
from bench.kernel_figures.checks import WrongResult
from bench.kernel_figures.checks import check as check_case
from bench.side_by_side import side_by_side

IMAGE = (800, 1333)


Function = Callable[[], Any]


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


@dataclass(frozen=True)
class Functions:
    """Ours and torchvision's way to one result.

    Attributes:
        truth: in float64, where results are not exact. ordered: whether the order of exact results matters.
    """

    ours: Function
    torchvision: Function
    truth: Function | None = None
    ordered: bool = True


def pairs() -> dict[str, Functions]:
    """Those that bars are about, by name; see `bench.cases` for the inputs."""
    return {**_roi_align(), **_nms(), **_paste()}


def measure(rounds: int = 5, names: Sequence[str] | None = None) -> list[Pair]:
    """Times those of the `pairs` that are named, all if None.

    Raises:
        WrongResult: ours is not what torchvision's is, so that there is nothing to time.
    """
    measured = []
    for name, functions in pairs().items():
        if names is not None and name not in names:
            continue
        check(name, functions)
        seconds = side_by_side({"ours": functions.ours, "torchvision": functions.torchvision}, rounds)
        measured.append(Pair(name, seconds["ours"], seconds["torchvision"]))
    return measured


def measure_case(case: Case, rounds: int = 5) -> Pair:
    """Times a case of `bench.kernel_figures.cases`, forward and, where it has gradients, backward.

    Raises:
        WrongResult: as `measure`.
    """
    functions = of_case(case)
    check_case(case, functions.ours())
    seconds = side_by_side({"ours": functions.ours, "torchvision": functions.torchvision}, rounds)
    return Pair(case.name, seconds["ours"], seconds["torchvision"])


def of_case(case: Case) -> Functions:
    """Both ways to the result of a case, which `bench.kernel_figures.checks` judges."""
    inputs, peer_inputs = case.inputs(), case.peer_inputs()
    peer = case.timed_peer or case.peer
    return Functions(lambda: both(case.ours, inputs), lambda: both(peer, peer_inputs))


def check(name: str, functions: Functions) -> None:
    """Raises WrongResult if selections or pasted masks differ, or features by more than the error rule allows."""
    ours, theirs = tree_leaves(functions.ours()), tree_leaves(functions.torchvision())
    truth = tree_leaves(functions.truth()) if functions.truth else theirs
    for a, b, exact in zip(ours, theirs, truth, strict=True):
        if not functions.ordered:
            a, b = a.sort().values, b.sort().values
        compared = compare(a, exact, b, a.dtype) if functions.truth else compare_exactly(a, b)
        if not compared.holds:
            raise WrongResult(f"{name}, eager beside torchvision: {compared}")


def _roi_align() -> dict[str, Functions]:
    pyramid = Pyramid()
    rois, features = proposals(pyramid), pyramid.features()
    trained = [feature.clone(memory_format=torch.preserve_format).requires_grad_() for feature in features]
    contiguous = [feature.contiguous() for feature in features]
    contiguous_trained = [feature.clone().requires_grad_() for feature in contiguous]

    def backward(pooled: Tensor, leaves: list[Tensor], channels_last: bool) -> tuple[Tensor, ...]:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return torch.autograd.grad(pooled, leaves, torch.ones_like(pooled, memory_format=memory_format))

    def ours(leaves: list[Tensor], size: int) -> Tensor:
        return kernels.multiscale_roi_align(leaves, rois, size, SCALES)

    def forward_of(size: int) -> Functions:
        return Functions(
            lambda: ours(features, size),
            lambda: torchvision_pooler(contiguous, rois, size),
            lambda: torchvision_pooler([feature.double() for feature in contiguous], rois, size),
        )

    def their_gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = contiguous_trained if dtype == torch.float32 else [each.to(dtype) for each in contiguous_trained]
        return backward(torchvision_pooler(leaves, rois, 7), leaves, False)

    return {
        "RoIAlign 7x7, forward": forward_of(7),
        "RoIAlign 14x14, forward": forward_of(14),
        "RoIAlign 7x7, forward and backward": Functions(
            lambda: backward(ours(trained, 7), trained, True),
            lambda: their_gradients(torch.float32),
            lambda: their_gradients(torch.float64),
        ),
    }


def _nms() -> dict[str, Functions]:
    boxes, scores = rpn_boxes(5, 2_000)
    classes = torch.arange(5).repeat_interleave(2_000)
    arguments = (boxes.flatten(0, 1), scores.flatten(), classes, 0.7)
    return {
        "batched_nms of 5 x 2,000 boxes": Functions(
            lambda: kernels.batched_nms(*arguments),
            lambda: torchvision.ops.batched_nms(*arguments),
            ordered=False,  # torchvision leaves open which of two equal scores comes first
        )
    }


def _paste() -> dict[str, Functions]:
    generator = torch.Generator().manual_seed(0)
    rois = proposals(Pyramid(images=1), per_image=100)[:, 1:]
    boxes = torch.minimum(rois, torch.tensor([IMAGE[1], IMAGE[0]]).repeat(2).float())
    masks = torch.rand(100, 1, 28, 28, generator=generator)
    return {
        "paste of 100 masks into 800 x 1333": Functions(
            lambda: kernels.paste_masks(masks, boxes, IMAGE),
            lambda: paste_masks_in_image(masks, boxes, IMAGE)[:, 0] > 0.5,
        )
    }

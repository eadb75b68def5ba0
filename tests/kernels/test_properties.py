"""Properties that hold for any boxes and shapes, drawn by Hypothesis.

`HYPOTHESIS_PROFILE=thorough` draws many times more, other ones at each run; see tests/conftest.py.
"""

from dataclasses import dataclass

import pytest
import torch
import torchvision
from error_rule import assert_error_rule
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels import batched_nms, nms, roi_align, segmented_nms, use
from kernels.dispatch import Implementation

IMPLEMENTATIONS: list[Implementation] = ["eager", "reference"]


@dataclass(frozen=True)
class Pooling:
    """A call of RoIAlign; the numbers themselves come from `seed`."""

    seed: int
    images: int
    channels: int
    rows: int
    columns: int
    bins: tuple[int, int]
    scale: float
    ratio: int
    aligned: bool
    last: bool
    rois: int

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features, RoIs on, across and beyond the border, from a point to twice the map, and a gradient."""
        generator = torch.Generator().manual_seed(self.seed)
        memory_format = torch.channels_last if self.last else torch.contiguous_format
        shape = (self.images, self.channels, self.rows, self.columns)
        features = torch.randn(shape, generator=generator).contiguous(memory_format=memory_format)
        image = torch.randint(0, self.images, (self.rois, 1), generator=generator)
        extent = torch.tensor([self.columns, self.rows]) / self.scale
        low = (torch.rand((self.rois, 2), generator=generator) * 1.6 - 0.3) * extent
        size = torch.rand((self.rois, 2), generator=generator) ** 3 * 2 * extent
        rois = torch.cat([image, low, low + size], dim=1)
        return features, rois, torch.randn((self.rois, self.channels, *self.bins), generator=generator)


poolings = st.builds(
    Pooling,
    seed=st.integers(0, 10**6),
    images=st.integers(1, 3),
    channels=st.integers(1, 9),
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    bins=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    scale=st.sampled_from([1.0, 0.5, 0.25, 0.0625]),
    ratio=st.sampled_from([-1, 1, 2, 3]),
    aligned=st.booleans(),
    last=st.booleans(),
    rois=st.integers(0, 12),
)


def pooled(call: Pooling, rois: Tensor, grad: Tensor) -> list[Tensor]:
    """Pooled features and the gradient of the features."""
    leaf = call.tensors()[0].requires_grad_()
    result = roi_align(leaf, rois, call.bins, call.scale, call.ratio, call.aligned)
    return [result.detach(), *torch.autograd.grad(result, leaf, grad)]


def torchvisions(call: Pooling, dtype: torch.dtype) -> list[Tensor]:
    features, rois, grad = (each.to(dtype) for each in call.tensors())
    leaf = features.contiguous().requires_grad_()
    result = torchvision.ops.roi_align(leaf, rois, call.bins, call.scale, call.ratio, call.aligned)
    return [result.detach(), *torch.autograd.grad(result, leaf, grad)]


@given(poolings)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_roi_align_is_torchvisions(implementation: Implementation, call: Pooling) -> None:
    with use(implementation):
        ours = pooled(call, *call.tensors()[1:])
    truths, plains = torchvisions(call, torch.float64), torchvisions(call, torch.float32)
    for result, truth, plain in zip(ours, truths, plains, strict=True):
        assert_error_rule(result, truth, plain, torch.float32)


@given(poolings, st.randoms(use_true_random=False))
def test_permuted_rois_give_permuted_results(call: Pooling, random: object) -> None:
    """The same bits forward; backward the sum over RoIs is taken in another order."""
    _, rois, grad = call.tensors()
    order = torch.tensor(random.sample(range(call.rois), call.rois), dtype=torch.int64)  # type: ignore[attr-defined]
    with use("eager"):
        result, gradient = pooled(call, rois, grad)
        permuted, gradient_permuted = pooled(call, rois[order], grad[order])
    assert permuted.equal(result[order])
    truth, plain = (torchvisions(call, dtype)[1] for dtype in (torch.float64, torch.float32))
    for each in (gradient, gradient_permuted):
        assert_error_rule(each, truth, plain, torch.float32)


coordinate = st.integers(0, 12)
box = st.tuples(coordinate, coordinate, st.integers(0, 8), st.integers(0, 8), st.integers(0, 4), st.integers(-3, 3))
box_lists = st.lists(box, max_size=40)
thresholds = st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.6, 0.7, 1.0])


def tensors(drawn: list[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, of which some have no area, scores with ties, and classes."""
    x, y, width, height, score, label = torch.tensor(drawn, dtype=torch.float32).reshape(-1, 6).unbind(1)
    return torch.stack([x, y, x + width, y + height], 1), score / 4, label.long()


@given(box_lists, thresholds)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nms_is_idempotent(implementation: Implementation, drawn: list[tuple[int, ...]], threshold: float) -> None:
    boxes, scores, _ = tensors(drawn)
    with use(implementation):
        kept = nms(boxes, scores, threshold)
        assert nms(boxes[kept], scores[kept], threshold).equal(torch.arange(len(kept)))


@given(box_lists, thresholds)
def test_one_class_or_a_class_each(drawn: list[tuple[int, ...]], threshold: float) -> None:
    """With one class `batched_nms` is `nms`; with a class for each box it keeps all, by score and then index."""
    boxes, scores, _ = tensors(drawn)
    with use("eager"):
        together = batched_nms(boxes, scores, torch.full((len(drawn),), 7), threshold)
        assert together.equal(nms(boxes, scores, threshold))
        apart = batched_nms(boxes, scores, torch.arange(len(drawn)).neg(), threshold)
    assert apart.tolist() == sorted(range(len(drawn)), key=lambda index: (-scores[index].item(), index))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_thousand_cases_of_nms_with_ties_are_torchvisions(implementation: Implementation) -> None:
    """Few different scores, boxes on a small grid: segments of one call."""
    generator = torch.Generator().manual_seed(1)
    cases, longest = (1000, 60) if implementation == "eager" else (100, 40)
    corner = torch.randint(0, 16, (cases, longest, 2), generator=generator)
    boxes = torch.cat([corner, corner + torch.randint(0, 9, (cases, longest, 2), generator=generator)], 2).float()
    scores = torch.randint(0, 8, (cases, longest), generator=generator) / 8
    counts = torch.randint(0, longest + 1, (cases,), generator=generator)
    for threshold in (0.25, 0.5):
        with use(implementation):
            keep, kept = segmented_nms(boxes, scores, threshold, longest, counts)
        for case, count in enumerate(counts.tolist()):
            wanted = torchvision.ops.nms(boxes[case, :count], scores[case, :count], threshold)
            assert kept[case] == len(wanted), case
            assert keep[case, : len(wanted)].equal(wanted), case

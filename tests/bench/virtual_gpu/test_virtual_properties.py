"""Properties of kernels as compiled: selections of 1,000 random cases with ties, which are exact, and permuted RoIs."""

import pytest
import torch
import torchvision
from torch import Tensor

import kernels
from bench.virtual_gpu.intercept import active
from kernels.gpu import nms_at_once

pytestmark = pytest.mark.compiled

CASES, LONGEST = 1000, 96


def cases() -> tuple[Tensor, Tensor, Tensor]:
    """Boxes on a small grid, few different scores: many equal scores, boxes and overlaps; 0 to 96 boxes a case."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 16, (CASES, LONGEST, 2), generator=generator)
    size = torch.randint(0, 9, (CASES, LONGEST, 2), generator=generator)
    scores = torch.randint(0, 8, (CASES, LONGEST), generator=generator) / 8
    counts = torch.randint(0, LONGEST + 1, (CASES,), generator=generator)
    return torch.cat([corner, corner + size], 2).float(), scores, counts


@pytest.fixture(params=["at once", "sorted"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In which form segments are done that both have room for."""
    if request.param == "sorted":
        monkeypatch.setattr(nms_at_once, "MOST_BOXES", 0)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("threshold", [0.25, 0.5])
def test_a_thousand_cases_are_torchvisions(threshold: float) -> None:
    boxes, scores, counts = cases()
    with kernels.use("triton"), active():
        keep, kept = kernels.segmented_nms(boxes, scores, threshold, LONGEST, counts)
    for case, count in enumerate(counts.tolist()):
        wanted = torchvision.ops.nms(boxes[case, :count], scores[case, :count], threshold)
        assert kept[case] == len(wanted), case
        assert keep[case, : len(wanted)].equal(wanted), case


@pytest.mark.usefixtures("form")
def test_idempotent() -> None:
    """What is kept of each case is kept again, in its order."""
    boxes, scores, counts = cases()
    with kernels.use("triton"), active():
        keep, kept = kernels.segmented_nms(boxes, scores, 0.4, LONGEST, counts)
        chosen = keep.clamp(min=0)
        again, count = kernels.segmented_nms(
            boxes.gather(1, chosen[..., None].expand(-1, -1, 4)), scores.gather(1, chosen), 0.4, LONGEST, kept
        )
    place = torch.arange(LONGEST).expand(CASES, -1)
    assert count.equal(kept)
    assert int(kept.sum()) < int(counts.sum())
    assert again.equal(torch.where(place < kept[:, None], place, -1))


def test_batched_nms_is_nms_of_each_class() -> None:
    """The kept set of each class on its own, ordered by score and then index."""
    boxes, scores, _ = cases()
    for case in range(20):
        classes = torch.randint(-2, 4, (LONGEST,), generator=torch.Generator().manual_seed(case))
        with kernels.use("triton"), active():
            ours = kernels.batched_nms(boxes[case], scores[case], classes, 0.3).tolist()
        wanted: list[int] = []
        for label in classes.unique():
            members = torch.nonzero(classes == label)[:, 0]
            wanted += members[torchvision.ops.nms(boxes[case, members], scores[case, members], 0.3)].tolist()
        assert ours == sorted(wanted, key=lambda index: (-scores[case, index].item(), index))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_permuted_rois_give_permuted_results(memory_format: torch.memory_format) -> None:
    """The same bits: a RoI's result depends on no other."""
    generator = torch.Generator().manual_seed(0)
    levels = [
        torch.randn((2, 24, side, side + 3), generator=generator).contiguous(memory_format=memory_format)
        for side in (32, 16)
    ]
    low, high = torch.rand((2, 60, 2), generator=generator).mul(150).sub(10).sort(dim=0).values
    rois = torch.cat([torch.randint(0, 2, (60, 1), generator=generator).float(), low, high], dim=1)
    order = torch.randperm(60, generator=generator)
    with kernels.use("triton"), active():
        one, other = (
            kernels.multiscale_roi_align(levels, each, 7, [1 / 4, 1 / 8], 2, canonical_scale=64, canonical_level=3)
            for each in (rois, rois[order])
        )
    assert other.equal(one[order])

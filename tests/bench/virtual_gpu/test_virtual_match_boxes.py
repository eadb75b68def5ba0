"""The matching kernels, compiled and run on the virtual GPU: exact in any order of warps."""

import pytest
import torch

import kernels
from bench.virtual_gpu import Options, unwritten
from bench.virtual_gpu.intercept import active
from kernels.gpu.match_boxes import CONFIGS

pytestmark = pytest.mark.compiled


def boxes(*shape: int, seed: int) -> torch.Tensor:
    """On a coarse grid, some without area: ties and overlaps of 0 / 0."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 8, (*shape, 2), generator=generator)
    return torch.cat([low, low + torch.randint(0, 7, (*shape, 2), generator=generator)], dim=-1).float() * 13.7


@pytest.mark.parametrize("options", [Options(), Options(reverse=True, quantum=1)], ids=["in order", "reversed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_match_boxes(dtype: torch.dtype, options: Options) -> None:
    anchors, gt_boxes, counts = boxes(300, seed=0).to(dtype), boxes(2, 21, seed=1).to(dtype), torch.tensor([21, 6])
    for some in (anchors, torch.stack([anchors, anchors.flip(0)])):
        with kernels.use("triton"), active(options=options) as record:
            seen = kernels.match_boxes(some, gt_boxes, counts)
        with kernels.use("reference"):
            wanted = kernels.match_boxes(some, gt_boxes, counts)
        for ours, true in zip(seen, wanted, strict=True):
            assert torch.equal(ours, true)
        assert not bool(unwritten(seen[1]).any())
        assert bool(seen[2].any())
        assert [launch.kernel for launch in record.launches] == ["_best_kernel", "_forced_kernel"]


def test_every_configuration() -> None:
    """All of which suit 300 anchors."""
    anchors, gt_boxes, counts = boxes(300, seed=0), boxes(2, 21, seed=1), torch.tensor([21, 6])
    with kernels.use("reference"):
        wanted = kernels.match_boxes(anchors, gt_boxes, counts)
    for number in range(len(CONFIGS)):
        with kernels.use("triton"), active(choose=lambda _, configs, number=number: configs[number]):
            seen = kernels.match_boxes(anchors, gt_boxes, counts)
        for ours, true in zip(seen, wanted, strict=True):
            assert torch.equal(ours, true)


def test_only_ground_truth_near_by_is_compared() -> None:
    """Of 16 ground truths a block of anchors in a row meets at most one: the work grows little with their number."""
    left = torch.arange(0, 4096.0, 4)
    anchors = torch.stack([left, left * 0, left + 12, left * 0 + 12], dim=1)
    gt_boxes = torch.zeros(1, 16, 4)
    gt_boxes[0, :, 0] = torch.arange(16) * 256.0 + 100
    gt_boxes[0, :, 2:] = gt_boxes[0, :, :2] + torch.tensor([20.0, 8])
    instructions = {}
    for count in (1, 16):
        with kernels.use("triton"), active() as record:
            _, overlap, forced = kernels.match_boxes(anchors, gt_boxes, torch.tensor([count]))
        first, second = (launch.counters for launch in record.launches)
        assert first.atomic_requests == count
        assert int((overlap > 0).sum()) == 7 * count
        assert int(forced.sum()) == 3 * count
        instructions[count] = first.warp_instructions + second.warp_instructions
    assert instructions[16] < 3 * instructions[1]

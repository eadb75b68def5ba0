"""The matching kernels, compiled and run on the virtual GPU: exact in any order of warps."""

import pytest
import torch

import kernels
from bench.virtual_gpu import Options, unwritten
from bench.virtual_gpu.intercept import active

pytestmark = pytest.mark.compiled


def boxes(*shape: int, seed: int) -> torch.Tensor:
    """On a coarse grid, some without area: ties and overlaps that are NaN."""
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
            assert torch.equal(ours.nan_to_num(77), true.nan_to_num(77))
        assert not bool(unwritten(seen[1]).any())
        assert bool(seen[1].isnan().any())
        assert bool(seen[2].any())
        assert [launch.kernel for launch in record.launches] == ["_best_kernel", "_forced_kernel"]


def test_every_configuration() -> None:
    anchors, gt_boxes, counts = boxes(300, seed=0), boxes(2, 21, seed=1), torch.tensor([21, 6])
    with kernels.use("reference"):
        wanted = kernels.match_boxes(anchors, gt_boxes, counts)
    for number in range(6):
        with kernels.use("triton"), active(choose=lambda _, configs, number=number: configs[number]):
            seen = kernels.match_boxes(anchors, gt_boxes, counts)
        for ours, true in zip(seen, wanted, strict=True):
            assert torch.equal(ours.nan_to_num(77), true.nan_to_num(77))


def test_most_blocks_write_nothing_of_ground_truth_that_they_do_not_touch() -> None:
    """The integer maximum is asked for only where a block overlaps a ground truth."""
    left = torch.arange(0, 4000.0, 10)
    anchors = torch.stack([left, left * 0, left + 9, left * 0 + 9], dim=1)
    gt_boxes = torch.zeros(1, 16, 4)
    gt_boxes[0, :2] = torch.tensor([[2.0, 0, 11, 9], [3000, 0, 3009, 9]])
    with kernels.use("triton"), active() as record:
        kernels.match_boxes(anchors, gt_boxes, torch.tensor([2]))
    assert record.launches[0].launch.grid == (4, 1, 1)
    assert record.launches[0].counters.atomic_requests == 2

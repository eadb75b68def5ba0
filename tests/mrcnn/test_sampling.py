"""Matching against torchvision's Matcher; sampling against its sampler's numbers and the laws of chance."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou

from mrcnn.sampling import IGNORED, NEGATIVE, POSITIVE, Match, match, sample


def grid_boxes(number: int, seed: int) -> Tensor:
    """Boxes with corners on a coarse grid: equal overlaps are frequent, and some are exactly at a threshold."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 8, (number, 2), generator=generator)
    size = torch.randint(1, 7, (number, 2), generator=generator)
    return torch.cat([low, low + size], dim=1).float() * 10


def assert_matched_as_torchvision(result: Match, image: int, quality: Tensor, matcher: Matcher) -> None:
    expected = matcher(quality)
    kind = torch.where(expected >= 0, POSITIVE, torch.where(expected == -1, NEGATIVE, IGNORED))
    assert torch.equal(result.kind[image], kind)
    positive = expected >= 0
    assert torch.equal(result.gt_index[image][positive], expected[positive])


@pytest.mark.parametrize("force_best", [False, True])
@pytest.mark.parametrize("thresholds", [(0.7, 0.3), (0.5, 0.5)])
@pytest.mark.parametrize("seed", range(10))
def test_matches_are_torchvisions(force_best: bool, thresholds: tuple[float, float], seed: int) -> None:
    boxes, gt_boxes = grid_boxes(300, seed), grid_boxes(12, seed + 100)
    quality = box_iou(gt_boxes, boxes)
    gt_boxes, quality = (each[quality.amax(dim=1) > 0] for each in (gt_boxes, quality))
    capacity = torch.zeros((1, 15, 4))
    capacity[0, : len(gt_boxes)] = gt_boxes
    result = match(boxes, capacity, torch.tensor([len(gt_boxes)]), *thresholds, force_best=force_best)
    assert_matched_as_torchvision(result, 0, quality, Matcher(*thresholds, allow_low_quality_matches=force_best))
    assert {POSITIVE, NEGATIVE} <= set(result.kind.flatten().tolist())


def test_each_image_has_its_own_boxes_and_ground_truth() -> None:
    boxes = torch.stack([grid_boxes(50, 1), grid_boxes(50, 2)])
    gt_boxes = torch.stack([grid_boxes(6, 3), grid_boxes(6, 4)])
    result = match(boxes, gt_boxes, torch.tensor([6, 2]), 0.5, 0.5)
    for image, count in enumerate((6, 2)):
        quality = box_iou(gt_boxes[image, :count], boxes[image])
        assert_matched_as_torchvision(result, image, quality, Matcher(0.5, 0.5))


def test_forced_match_by_hand() -> None:
    anchors = torch.tensor([[0, 0, 10, 10], [10, 0, 20, 10], [0, 20, 10, 30], [50, 50, 60, 60.0]])
    # The first object touches the two upper anchors equally, the second covers the third anchor, no anchor reaches
    # the last one. torchvision would make every anchor positive for that, as all overlap it equally: not at all.
    objects = torch.tensor([[[5, 0, 15, 10], [0, 20, 10, 29], [200, 200, 210, 210.0]]])
    result = match(anchors, objects, torch.tensor([3]), 0.7, 0.3, force_best=True)
    assert result.kind.tolist() == [[POSITIVE, POSITIVE, POSITIVE, NEGATIVE]]
    assert result.gt_index[0, :3].tolist() == [0, 0, 1]
    not_forced = match(anchors, objects, torch.tensor([3]), 0.7, 0.3)
    assert not_forced.kind.tolist() == [[IGNORED, IGNORED, POSITIVE, NEGATIVE]]  # an IoU of 1/3 is between


@pytest.mark.parametrize("capacity", [0, 5])
def test_without_objects_all_is_negative(capacity: int) -> None:
    result = match(grid_boxes(20, 0), torch.zeros((2, capacity, 4)), torch.tensor([0, 0]), 0.7, 0.3, force_best=True)
    assert result.kind.tolist() == [[NEGATIVE] * 20] * 2


def kinds(positive: int, negative: int, ignored: int, seed: int = 0) -> Tensor:
    kind = torch.tensor([POSITIVE] * positive + [NEGATIVE] * negative + [IGNORED] * ignored)
    return kind[torch.randperm(len(kind), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("positive", [0, 1, 31, 32, 33, 100, 300])
@pytest.mark.parametrize("negative", [0, 5, 95, 96, 97, 1000])
@pytest.mark.parametrize("ignored", [0, 40])
def test_numbers_are_torchvisions(positive: int, negative: int, ignored: int) -> None:
    if positive + negative + ignored == 0:
        assert sample(torch.zeros((1, 0), dtype=torch.int64), 128, 0.25).index.shape == (1, 0)
        return
    kind = kinds(positive, negative, ignored)[None]
    drawn = sample(kind, 128, 0.25)
    theirs = BalancedPositiveNegativeSampler(128, 0.25)([torch.where(kind[0] == IGNORED, -1, kind[0])])
    used = drawn.weight[0] > 0
    assert set(drawn.weight[0].tolist()) <= {0.0, 1.0}
    assert int(drawn.positive.sum()) == int(theirs[0][0].sum()) == min(positive, 32)
    assert int(used.sum()) == int(theirs[0][0].sum() + theirs[1][0].sum())
    # Positives come first, then negatives, then places left over; what is drawn is drawn once.
    assert drawn.positive[0].tolist() == sorted(drawn.positive[0].tolist(), reverse=True)
    assert used.tolist() == sorted(used.tolist(), reverse=True)
    chosen = drawn.index[0][used]
    assert len(chosen.unique()) == len(chosen)
    assert torch.equal(kind[0][chosen], torch.where(drawn.positive[0][used], POSITIVE, NEGATIVE))
    assert drawn.index.min() >= 0
    assert drawn.index.max() < kind.shape[1]


def test_sizes_do_not_depend_on_the_kinds() -> None:
    batch = torch.stack([kinds(200, 300, 0), kinds(0, 3, 497), kinds(1, 0, 499)])
    drawn = sample(batch, 128, 0.5)
    assert drawn.index.shape == drawn.positive.shape == drawn.weight.shape == (3, 128)
    assert drawn.positive.sum(dim=1).tolist() == [64, 0, 1]
    assert drawn.weight.sum(dim=1).tolist() == [128, 3, 1]


def test_all_are_drawn_equally_often() -> None:
    torch.manual_seed(0)
    draws, kind = 4000, kinds(40, 160, 20)
    drawn = sample(kind.expand(draws, -1), 40, 0.25)
    times = torch.bincount(drawn.index.flatten(), minlength=len(kind)).double()
    assert times[kind == IGNORED].sum() == 0
    for which, number, share in ((POSITIVE, 40, 10 / 40), (NEGATIVE, 160, 30 / 160)):
        deviation = math.sqrt(draws * share * (1 - share))
        scores = (times[kind == which] - draws * share) / deviation
        assert len(scores) == number
        assert scores.abs().max() < 4.5
        assert 0.5 < scores.square().mean() < 1.6
    # No draw says anything about the next: the same positives twice in a row would be one chance in 10^8.
    assert not torch.equal(drawn.index[0], drawn.index[1])

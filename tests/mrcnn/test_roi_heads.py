"""Detections and sampled RoIs against torchvision's RoIHeads, and the losses by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import RoIHeads as TorchvisionRoIHeads
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import MultiScaleRoIAlign, box_iou, roi_align

from mrcnn import PRESETS
from mrcnn.config import ModelConfig
from mrcnn.preprocess import Batch, Targets
from mrcnn.roi_heads import Detections, MaskRoIs, RoIHeads
from mrcnn.rpn import Proposals

SIZES = [(120, 160), (96, 133)]
BATCH = Batch(torch.zeros(2, 3, 128, 160, dtype=torch.float64), torch.tensor(SIZES), SIZES, SIZES)


def configured(num_classes: int, **changes: int | float) -> ModelConfig:
    small = {"fpn_channels": 8, "box_hidden": 16, "mask_channels": 8, "mask_convs": 1}
    return replace(PRESETS["mask_rcnn_r50_fpn"], num_classes=num_classes, **{**small, **changes})


class Given(nn.Module):
    """A box branch that says what it was told to."""

    def __init__(self, logits: Tensor, offsets: Tensor) -> None:
        super().__init__()
        self.answer = logits, offsets

    def forward(self, features: list[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        assert len(rois) == len(self.answer[0])
        return self.answer


def peer(config: ModelConfig) -> TorchvisionRoIHeads:
    return TorchvisionRoIHeads(
        None,
        None,
        None,
        config.roi_fg_iou,
        config.roi_fg_iou,
        config.roi_samples,
        config.roi_positive_fraction,
        None,
        config.box_score_threshold,
        config.box_nms_iou,
        config.detections_per_image,
    )


def some_proposals(counts: list[int], capacity: int, seed: int = 0) -> Proposals:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(len(counts), capacity, 2, generator=generator, dtype=torch.float64) * 80
    size = 8 + torch.rand(low.shape, generator=generator, dtype=torch.float64) * 60
    boxes, counted = torch.cat([low, low + size], dim=2), torch.tensor(counts)
    boxes[torch.arange(capacity) >= counted[:, None]] = 0
    return Proposals(boxes, torch.zeros(boxes.shape[:2]), counted)


@pytest.mark.parametrize(
    ("num_classes", "spread", "changes"),
    [
        (6, 2.0, {}),
        (2, 2.0, {}),  # one class besides the background
        (6, 2.0, {"detections_per_image": 7}),
        (6, 2.0, {"box_score_threshold": 0.6, "box_nms_iou": 0.2}),
        (6, 0.0, {"box_score_threshold": 0.2}),  # every score is 1/6: nothing is found
    ],
)
def test_detections_are_torchvisions(num_classes: int, spread: float, changes: dict[str, int | float]) -> None:
    config = configured(num_classes, **changes)
    counts, capacity = [60, 37], 64
    # What lies in the places left over must not matter.
    proposals = replace(some_proposals([capacity] * 2, capacity), counts=torch.tensor(counts))
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, capacity, num_classes, generator=generator, dtype=torch.float64) * spread
    offsets = torch.randn(2, capacity, num_classes, 4, generator=generator, dtype=torch.float64) * 3
    offsets[0, :5, :, 2:] = -60  # boxes too small to keep
    heads = RoIHeads(config)
    heads.box = Given(logits.flatten(0, 1), offsets.flatten(0, 1))
    result = heads.detect([], proposals, BATCH)
    expected = peer(config).postprocess_detections(
        torch.cat([each[:count] for each, count in zip(logits, counts, strict=True)]),
        torch.cat([each[:count].flatten(1) for each, count in zip(offsets, counts, strict=True)]),
        [each[:count] for each, count in zip(proposals.boxes, counts, strict=True)],
        SIZES,
    )
    assert result.boxes.shape == (2, min(config.detections_per_image, capacity * (num_classes - 1)), 4)
    assert result.counts.tolist() == [len(scores) for scores in expected[1]]
    assert (spread == 0) == (not result.counts.any())
    for image, (boxes, scores, labels) in enumerate(zip(*expected, strict=True)):
        number = len(scores)
        torch.testing.assert_close(result.boxes[image, :number], boxes, rtol=0, atol=1e-9)
        torch.testing.assert_close(result.scores[image, :number], scores, rtol=0, atol=1e-12)
        assert torch.equal(result.labels[image, :number], labels)
        for left_over in (result.boxes, result.scores, result.labels):
            assert not left_over[image, number:].any()
    trimmed, most = result.trim(), int(result.counts.max())
    assert trimmed.boxes.shape == (2, most, 4)
    assert torch.equal(trimmed.labels, result.labels[:, :most])


def some_targets(counts: list[int], seed: int = 5) -> Targets:
    boxes = some_proposals(counts, max(counts), seed).boxes.float()
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, 5, boxes.shape[:2], generator=generator)
    masks = torch.randint(0, 2, (*boxes.shape[:2], 128, 160), generator=generator, dtype=torch.uint8)
    return Targets(boxes, labels, masks, torch.tensor(counts))


@pytest.mark.parametrize("counts", [[5, 9], [0, 4], [0, 0]])
def test_sampled_rois_are_what_torchvision_makes_of_them(counts: list[int]) -> None:
    config = configured(5, roi_samples=32)
    proposals, targets = some_proposals([150, 80], 160), some_targets(counts)
    torch.manual_seed(0)
    sampled = RoIHeads(config).sample(proposals, targets)
    assert sampled.rois.shape == (64, 5)
    assert sampled.weights.tolist() == [1.0] * 64
    assert sampled.mask_rois.rois.shape == (2 * config.mask_slots, 5)
    for image, count in enumerate(counts):
        of_image = slice(32 * image, 32 * (image + 1))
        rois, labels = sampled.rois[of_image], sampled.labels[of_image]
        assert (rois[:, 0] == image).all()
        known = torch.cat([proposals.boxes[image, : proposals.counts[image]], targets.boxes[image, :count]])
        assert box_iou(rois[:, 1:], known).amax(dim=1).min() == 1  # no place left over is drawn
        gt_boxes, gt_labels = targets.boxes[image, :count].double(), targets.labels[image, :count]
        (matched,), (expected,) = peer(config).assign_targets_to_proposals([rois[:, 1:]], [gt_boxes], [gt_labels])
        assert torch.equal(labels, expected)
        positive = expected > 0
        number = int(positive.sum())
        assert (0 < number <= 8) == (count > 0)
        assert positive[:number].all()
        offsets = BoxCoder((10.0, 10.0, 5.0, 5.0)).encode_single(gt_boxes[matched[positive]], rois[positive, 1:])
        torch.testing.assert_close(sampled.offsets[of_image][positive], offsets, rtol=1e-6, atol=1e-6)
        assert not sampled.offsets[of_image][~positive].any()

        slots = slice(config.mask_slots * image, config.mask_slots * (image + 1))
        mask_rois = sampled.mask_rois
        assert mask_rois.weights[slots].tolist() == [1.0] * number + [0.0] * (config.mask_slots - number)
        assert torch.equal(mask_rois.rois[slots][:number], rois[:number])
        assert torch.equal(mask_rois.labels[slots][:number], labels[:number])
        assert torch.equal(mask_rois.gt_index[slots][:number], matched[:number] + max(counts) * image)
    trimmed = sampled.trim()
    assert len(trimmed.mask_rois.rois) == int((sampled.labels > 0).sum())
    assert torch.equal(trimmed.mask_rois.labels, sampled.labels[sampled.labels > 0])


def test_ground_truth_is_among_the_candidates() -> None:
    """At the start of a training no proposal is good; the objects themselves are."""
    config = configured(5, roi_samples=32)
    proposals, targets = some_proposals([0, 0], 3), some_targets([2, 3])
    sampled = RoIHeads(config).sample(proposals, targets)
    for image, count in enumerate((2, 3)):
        found = sampled.rois[(sampled.rois[:, 0] == image) & (sampled.labels > 0), 1:]
        assert torch.equal(found.sort(dim=0).values, targets.boxes[image, :count].double().sort(dim=0).values)


def test_more_objects_than_places_for_masks() -> None:
    config = configured(5, roi_samples=32)
    sampled = RoIHeads(config).sample(some_proposals([20], 20), some_targets([50]))
    assert int((sampled.labels > 0).sum()) == config.mask_slots == 8
    assert sampled.mask_rois.weights.tolist() == [1.0] * 8


def test_class_and_box_loss_are_torchvisions_and_ignore_places_left_over() -> None:
    config = configured(5, roi_samples=32)
    heads, targets = RoIHeads(config).double(), some_targets([3, 2])
    sampled = heads.sample(some_proposals([6, 9], 9), targets)
    used = sampled.weights > 0
    assert 0 < used.sum() < len(used)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(len(used), 5, generator=generator, dtype=torch.float64, requires_grad=True)
    offsets = torch.randn(len(used), 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    heads.box = Given(logits, offsets)
    features = [torch.rand(2, 8, 32 >> level, 40 >> level, dtype=torch.float64) for level in range(4)]
    losses = heads.losses(features, sampled, targets.masks)
    expected = fastrcnn_loss(
        logits[used], offsets.flatten(1)[used], [sampled.labels[used]], [sampled.offsets[used].double()]
    )
    torch.testing.assert_close(losses["loss_classifier"], expected[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(losses["loss_box_reg"], expected[1], rtol=1e-12, atol=0)
    (losses["loss_classifier"] + losses["loss_box_reg"]).backward()
    assert not logits.grad[~used].any()
    assert not offsets.grad[~used].any()
    assert logits.grad[used].abs().amin(dim=1).min() > 0


def test_mask_branch_computes_the_wanted_class_only_and_rightly() -> None:
    config = configured(5)
    branch = RoIHeads(config).mask.double()
    nn.init.normal_(branch.logits.bias)
    features = [torch.rand(1, 8, 32 >> level, 40 >> level, dtype=torch.float64) for level in range(4)]
    rois = torch.tensor([[0, 5.0, 6.0, 90.0, 70.0], [0, 1, 1, 20, 30]], dtype=torch.float64)
    labels = torch.tensor([3, 1])
    nn.init.normal_(branch.up.bias)
    result = branch(features, rois, labels)
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2)
    x = pool(dict(zip("0123", features, strict=True)), [rois[:, 1:]], [(128, 160)])
    for conv in branch.convs:
        x = F.relu(conv(x))
    every_class = branch.logits(F.relu(branch.up(x)))
    expected = every_class[torch.arange(2), labels].sigmoid()
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("aligned", [False, True])
def test_features_and_mask_targets_are_torchvisions_aligned_or_not(aligned: bool) -> None:
    config = configured(5, aligned=aligned)
    heads = RoIHeads(config).double()
    generator = torch.Generator().manual_seed(0)
    features = [torch.rand(1, 8, 32 >> level, 40 >> level, generator=generator).double() for level in range(4)]
    rois = torch.tensor([[0, 5.0, 6.0, 50.0, 47.3], [0, 1.2, 1.7, 30, 20]], dtype=torch.float64)  # both on P2
    labels = torch.tensor([3, 1])
    nn.init.normal_(heads.mask.logits.weight, std=3.0)
    masks = torch.randint(0, 2, (1, 2, 128, 160), generator=generator, dtype=torch.uint8)
    positives = MaskRoIs(rois, labels, torch.tensor([1, 0]), torch.ones(2))
    loss = heads._mask_loss(features, positives, masks)

    x = roi_align(features[0], rois, 14, 1 / 4, 2, aligned)
    for conv in heads.mask.convs:
        x = F.relu(conv(x))
    logits = heads.mask.logits(F.relu(heads.mask.up(x)))[torch.arange(2), labels]
    index = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    targets = roi_align(masks[0, :, None].double(), torch.cat([index, rois[:, 1:]], dim=1), 28, 1.0, -1, aligned)[:, 0]
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, targets), rtol=1e-6, atol=0)
    pooled = roi_align(features[0], rois, 7, 1 / 4, 2, aligned)
    hidden = F.relu(heads.box.fc7(F.relu(heads.box.fc6(pooled.permute(0, 2, 3, 1).flatten(1)))))
    torch.testing.assert_close(heads.box(features, rois)[0], heads.box.classes(hidden), rtol=1e-9, atol=1e-9)


def largest_allocation(function: Callable[[], object]) -> int:
    """Bytes that one operation inside the call allocates at most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    return max(event.self_cpu_memory_usage for event in seen.events())


def test_masks_of_all_classes_never_exist() -> None:
    config = configured(200)
    heads = RoIHeads(config)
    features = [torch.rand(1, 8, 32 >> level, 40 >> level, requires_grad=True) for level in range(4)]
    rois = torch.tensor([[0, 5.0, 6.0, 50.0, 47.3]]).repeat(6, 1)
    positives = MaskRoIs(rois, torch.arange(6), torch.zeros(6, dtype=torch.int64), torch.ones(6))
    masks = torch.ones((1, 1, 128, 160), dtype=torch.uint8)
    detections = Detections(rois[None, :, 1:], torch.arange(6)[None], torch.ones(1, 6), torch.tensor([6]))
    of_all = 6 * 200 * 28 * 28 * 4
    assert largest_allocation(lambda: heads._mask_loss(features, positives, masks).backward()) < of_all / 4
    assert largest_allocation(lambda: heads.masks(features, detections)) < of_all / 4
    upsampled = torch.rand(6, 8, 28, 28)
    assert largest_allocation(lambda: heads.mask.logits(upsampled)) >= of_all  # so it would be noticed

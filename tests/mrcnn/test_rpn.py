"""The region proposal network against torchvision's with the same weights and features."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork as TorchvisionRPN
from torchvision.models.detection.rpn import RPNHead

from mrcnn import PRESETS
from mrcnn.boxes import encode
from mrcnn.preprocess import Batch, Targets
from mrcnn.rpn import RegionProposalNetwork

CHANNELS = 16
CONFIG = replace(
    PRESETS["mask_rcnn_r50_fpn"],
    fpn_channels=CHANNELS,
    proposals_per_level_train=120,
    proposals_per_level_test=60,
    proposals_train=200,
    proposals_test=90,
)
SIZES = [(120, 160), (96, 133)]


def both() -> tuple[TorchvisionRPN, RegionProposalNetwork]:
    """torchvision's RPN and ours with the same weights, in float64."""
    torch.manual_seed(0)
    head = RPNHead(CHANNELS, 3)
    torch.nn.init.normal_(head.conv[0][0].weight, std=0.1)
    torch.nn.init.normal_(head.cls_logits.weight, std=0.5)
    torch.nn.init.normal_(head.bbox_pred.weight, std=0.2)
    for layer in (head.conv[0][0], head.cls_logits, head.bbox_pred):
        torch.nn.init.normal_(layer.bias, std=0.3)
    theirs = TorchvisionRPN(
        AnchorGenerator(tuple((size,) for size in CONFIG.anchor_sizes), (CONFIG.anchor_ratios,) * 5),
        head,
        CONFIG.rpn_fg_iou,
        CONFIG.rpn_bg_iou,
        CONFIG.rpn_samples,
        CONFIG.rpn_positive_fraction,
        {"training": CONFIG.proposals_per_level_train, "testing": CONFIG.proposals_per_level_test},
        {"training": CONFIG.proposals_train, "testing": CONFIG.proposals_test},
        CONFIG.rpn_nms_iou,
    )
    ours = RegionProposalNetwork(CONFIG)
    ours.conv.load_state_dict(head.conv[0][0].state_dict())
    ours.objectness.load_state_dict(head.cls_logits.state_dict())
    ours.offsets.load_state_dict(head.bbox_pred.state_dict())
    return theirs.double(), ours.double()


def scene(number: int = 2) -> tuple[list[Tensor], Batch, ImageList]:
    """Pyramid features of images of different size in one batch of 128 x 160."""
    generator = torch.Generator().manual_seed(1)
    features = [
        torch.randn(number, CHANNELS, -(-128 // s), -(-160 // s), generator=generator, dtype=torch.float64)
        for s in (4, 8, 16, 32, 64)
    ]
    images, sizes = torch.zeros(number, 3, 128, 160, dtype=torch.float64), SIZES[:number]
    return features, Batch(images, torch.tensor(sizes), sizes, sizes), ImageList(images, sizes)


def some_targets(counts: list[int]) -> Targets:
    generator = torch.Generator().manual_seed(2)
    low = torch.rand(len(counts), max(counts), 2, generator=generator) * 60
    boxes = torch.cat([low, low + 15 + torch.rand(low.shape, generator=generator) * 50], dim=2)
    counted = torch.tensor(counts)
    boxes[torch.arange(max(counts)) >= counted[:, None]] = 0
    labels = torch.ones(boxes.shape[:2], dtype=torch.int64)
    return Targets(boxes, labels, torch.zeros(*boxes.shape[:2], 128, 160, dtype=torch.uint8), counted)


@pytest.mark.parametrize("training", [False, True])
def test_proposals_are_torchvisions(training: bool) -> None:
    theirs, ours = both()
    features, batch, images = scene()
    theirs.train(training)
    ours.train(training)
    their_targets = [{"boxes": torch.tensor([[10.0, 10, 60, 60]], dtype=torch.float64)}] * 2
    named = {str(level): feature for level, feature in enumerate(features)}
    expected, _ = theirs(images, named, their_targets if training else None)
    result = ours.propose(features, ours.anchors(features, batch), batch)
    capacity = CONFIG.proposals_train if training else CONFIG.proposals_test
    assert result.boxes.shape == (2, capacity, 4)
    assert result.counts.tolist() == [len(boxes) for boxes in expected]
    for image, boxes in enumerate(expected):
        torch.testing.assert_close(result.boxes[image, : len(boxes)], boxes, rtol=0, atol=1e-9)
        assert (result.scores[image, : len(boxes)].diff() <= 0).all()
    assert result.present().sum(dim=1).tolist() == result.counts.tolist()
    assert not result.boxes.requires_grad


def test_places_left_over_are_empty_and_can_be_trimmed() -> None:
    """A capacity larger than what non-maximum suppression leaves."""
    _, ours = both()
    features, batch, _ = scene()
    ours.config = replace(CONFIG, proposals_per_level_test=30, proposals_test=500, rpn_nms_iou=0.3)
    result = ours.eval().propose(features, ours.anchors(features, batch), batch)
    most = int(result.counts.max())
    assert 0 < result.counts.min() < most < result.boxes.shape[1]
    assert not result.boxes[~result.present()].any()
    assert not result.scores[~result.present()].any()
    trimmed = result.trim()
    assert torch.equal(trimmed.boxes, result.boxes[:, :most])
    assert torch.equal(trimmed.scores, result.scores[:, :most])
    assert torch.equal(trimmed.counts, result.counts)


def test_sampled_anchors_have_torchvisions_labels_and_offsets() -> None:
    theirs, ours = both()
    features, batch, images = scene()
    targets = some_targets([6, 2])
    anchors = ours.anchors(features, batch)
    torch.manual_seed(0)
    chosen, wanted = ours.sample(anchors, targets)
    assert chosen.index.shape == (2, CONFIG.rpn_samples)
    assert wanted.shape == (2, CONFIG.rpn_samples, 4)
    their_anchors = theirs.anchor_generator(images, features)
    their_targets = [{"boxes": targets.boxes[image, :count]} for image, count in enumerate((6, 2))]
    labels, matched = theirs.assign_targets_to_anchors([each.float() for each in their_anchors], their_targets)
    for image in range(2):
        index, positive = chosen.index[image], chosen.positive[image]
        used = chosen.weight[image] > 0
        assert torch.equal(labels[image][index][used], positive[used].float())
        assert 1 < positive.sum() <= 128
        expected = encode(matched[image][index], their_anchors[image][index].float(), (1.0, 1.0, 1.0, 1.0))
        assert torch.equal(wanted[image][positive], expected[positive])


@pytest.mark.parametrize("counts", [[6, 2], [3, 0], [0, 0]])
def test_losses_and_gradients_are_torchvisions(counts: list[int]) -> None:
    """torchvision runs its head on all pixels and picks anchors, ours computes the head at the anchors."""
    theirs, ours = both()
    features, batch, images = scene()
    ours_in, theirs_in = ([feature.clone().requires_grad_() for feature in features] for _ in range(2))
    targets = some_targets(counts)
    anchors = ours.anchors(features, batch)
    torch.manual_seed(3)
    chosen, wanted = ours.sample(anchors, targets)
    result = ours.losses(ours_in, chosen, wanted)

    total = sum(len(level) for level in anchors)

    def drawn(labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        masks: tuple[list[Tensor], list[Tensor]] = ([], [])
        for image in range(2):
            used, positive = chosen.weight[image] > 0, chosen.positive[image]
            for mask, which in zip(masks, (used & positive, used & ~positive), strict=True):
                mask.append(torch.zeros(total, dtype=torch.uint8).index_fill(0, chosen.index[image][which], 1))
        return masks

    theirs.train().fg_bg_sampler = drawn
    their_targets = [{"boxes": targets.boxes[image, :count].double()} for image, count in enumerate(counts)]
    _, expected = theirs(images, {str(level): each for level, each in enumerate(theirs_in)}, their_targets)
    assert result.keys() == expected.keys()
    for name, loss in expected.items():
        assert (loss > 0) == (name == "loss_objectness" or sum(counts) > 0)
        torch.testing.assert_close(result[name], loss.double(), rtol=1e-6, atol=0)
    sum(result.values()).backward()
    sum(expected.values()).backward()
    pairs = list(zip(ours_in, theirs_in, strict=True))
    for mine, reference in [
        *pairs,
        (ours.conv.weight, theirs.head.conv[0][0].weight),
        (ours.conv.bias, theirs.head.conv[0][0].bias),
        (ours.objectness.weight, theirs.head.cls_logits.weight),
        (ours.objectness.bias, theirs.head.cls_logits.bias),
        (ours.offsets.weight, theirs.head.bbox_pred.weight),
        (ours.offsets.bias, theirs.head.bbox_pred.bias),
    ]:
        scale = reference.grad.abs().max().item()
        torch.testing.assert_close(mine.grad, reference.grad, rtol=0, atol=1e-6 * scale)
    assert ours.conv.weight.grad.abs().max() > 0

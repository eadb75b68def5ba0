"""Region proposal network (Ren et al., 2015) over a feature pyramid: proposals, and its two losses."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels import decode_boxes, segmented_nms
from mrcnn.anchors import pyramid_anchors
from mrcnn.boxes import at_least_float32, encode
from mrcnn.config import ModelConfig
from mrcnn.preprocess import Batch, Targets
from mrcnn.sampling import Sample, match, sample

_UNIT = (1.0, 1.0, 1.0, 1.0)
_BETA = 1 / 9


@dataclass(frozen=True)
class Proposals:
    """A fixed number R of boxes for each image, by descending score, of which the first counts [B] are real."""

    boxes: Tensor  # [B, R, 4] in pixels of the network's input; zeros in the places left over
    scores: Tensor  # [B, R]
    counts: Tensor  # [B]

    def present(self) -> Tensor:
        """Which places are taken [B, R]."""
        return torch.arange(self.boxes.shape[1], device=self.boxes.device) < self.counts[:, None]

    def trim(self) -> "Proposals":
        """Without the places that no image needs. Waits for the device."""
        most = max(int(self.counts.max()), 1)
        return Proposals(self.boxes[:, :most], self.scores[:, :most], self.counts)


class RegionProposalNetwork(nn.Module):
    """A 3x3 convolution shared by all levels, then objectness logits and box offsets for each anchor."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        anchors = len(config.anchor_ratios)
        self.conv = nn.Conv2d(config.fpn_channels, config.fpn_channels, 3, padding=1)
        self.objectness = nn.Conv2d(config.fpn_channels, anchors, 1)
        self.offsets = nn.Conv2d(config.fpn_channels, 4 * anchors, 1)
        for conv in (self.conv, self.objectness, self.offsets):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.constant_(conv.bias, 0)  # type: ignore[arg-type]

    def anchors(self, features: list[Tensor], batch: Batch) -> list[Tensor]:
        """The anchors [N_l, 4] of each level."""
        size = (batch.images.shape[-2], batch.images.shape[-1])
        return pyramid_anchors(features, size, self.config.anchor_sizes, self.config.anchor_ratios)

    @torch.no_grad()
    def propose(self, features: list[Tensor], anchors: list[Tensor], batch: Batch) -> Proposals:
        """The best boxes of each image after non-maximum suppression within each level."""
        config = self.config
        per_level = config.proposals_per_level_train if self.training else config.proposals_per_level_test
        capacity = config.proposals_train if self.training else config.proposals_test
        chosen = []
        for feature, level in zip(features, anchors, strict=True):
            logits, offsets = self._head(feature)
            best = torch.topk(logits, min(per_level, logits.shape[1]), dim=1)
            of_best = offsets.gather(1, best.indices[..., None].expand(-1, -1, 4))
            chosen.append((of_best, level[best.indices], best.values.sigmoid()))
        boxes, scores = _decode(chosen, batch.sizes, config.rpn_min_size)
        return _suppress_within_levels(boxes, scores, config, capacity)

    def sample(self, anchors: list[Tensor], targets: Targets) -> tuple[Sample, Tensor]:
        """Anchors to train on, and the offsets [B, S, 4] that they should have."""
        config = self.config
        everywhere = torch.cat(anchors)
        matched = match(
            everywhere, targets.boxes, targets.counts, config.rpn_fg_iou, config.rpn_bg_iou, force_best=True
        )
        chosen = sample(matched.kind, config.rpn_samples, config.rpn_positive_fraction)
        if targets.boxes.shape[1] == 0:
            return chosen, torch.zeros_like(everywhere[chosen.index])
        gt_index = matched.gt_index.gather(1, chosen.index)
        gt_boxes = targets.boxes.gather(1, gt_index[..., None].expand(-1, -1, 4))
        wanted = torch.where(chosen.positive[..., None], gt_boxes, everywhere[chosen.index])
        return chosen, encode(wanted, everywhere[chosen.index], _UNIT)

    def losses(self, features: list[Tensor], chosen: Sample, wanted: Tensor) -> dict[str, Tensor]:
        """Objectness and box losses of the sampled anchors (Faster R-CNN, equation 1)."""
        objectness, offsets = self._head_at(features, chosen.index)
        total = chosen.weight.sum().clamp(min=1)
        entropy = F.binary_cross_entropy_with_logits(objectness, chosen.positive.to(objectness.dtype), reduction="none")
        distance = F.smooth_l1_loss(offsets, wanted, beta=_BETA, reduction="none").sum(dim=2)
        return {
            "loss_objectness": (entropy * chosen.weight).sum() / total,
            "loss_rpn_box_reg": torch.where(chosen.positive, distance, 0.0).sum() / total,
        }

    def _head(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """feature: [B, C, H, W]; logits [B, H * W * A] and offsets [B, H * W * A, 4] in the order of the anchors."""
        hidden = F.relu(self.conv(feature), inplace=True)
        objectness = self.objectness(hidden).permute(0, 2, 3, 1).flatten(1)
        offsets = self.offsets(hidden).permute(0, 2, 3, 1).reshape(feature.shape[0], -1, 4)
        return at_least_float32(objectness), at_least_float32(offsets)

    def _head_at(self, features: list[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """The head's logits [B, S] and offsets [B, S, 4] at some anchors only.

        The losses look at a few hundred anchors out of some hundred thousand. With the 3x3 neighbourhoods of just
        these, the backward pass costs next to nothing, where that of the whole convolution costs as much as two more
        forward passes.
        """
        ratios = len(self.config.anchor_ratios)
        patches = _neighbourhoods(features, index // ratios)
        weight = self.conv.weight.permute(0, 2, 3, 1).flatten(1)
        hidden = F.relu(F.linear(patches, weight, self.conv.bias))
        ratio = (index % ratios)[..., None]
        objectness = F.linear(hidden, self.objectness.weight.flatten(1), self.objectness.bias).gather(2, ratio)
        offsets = F.linear(hidden, self.offsets.weight.flatten(1), self.offsets.bias).unflatten(2, (ratios, 4))
        offsets = offsets.gather(2, ratio[..., None].expand(-1, -1, 1, 4))
        return at_least_float32(objectness[..., 0]), at_least_float32(offsets[..., 0, :])


def _neighbourhoods(features: list[Tensor], position: Tensor) -> Tensor:
    """The 3x3 pixels around positions [B, S], which count the pixels of all levels, each row by row: [B, S, 9 * C]."""
    patches = []
    start = 0
    image = torch.arange(position.shape[0], device=position.device)[:, None, None]
    reach = torch.arange(-1, 2, device=position.device)
    dy, dx = (each.flatten() for each in torch.meshgrid(reach, reach, indexing="ij"))
    for feature in features:
        _, channels, height, width = feature.shape
        on_level = (position >= start) & (position < start + height * width)
        local = (position - start).clamp(0, height * width - 1)
        y, x = (local // width)[..., None] + dy, (local % width)[..., None] + dx
        inside = on_level[..., None] & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        pixel = (image * height + y.clamp(0, height - 1)) * width + x.clamp(0, width - 1)
        # An embedding's backward pass adds equal rows in a fixed order on a GPU too.
        rows = F.embedding(pixel, feature.permute(0, 2, 3, 1).reshape(-1, channels))
        patches.append(torch.where(inside[..., None], rows, 0.0))
        start += height * width
    return torch.stack(patches).sum(dim=0).flatten(2)


def _decode(levels: list[tuple[Tensor, Tensor, Tensor]], image_sizes: Tensor, min_size: float) -> tuple[Tensor, Tensor]:
    """Boxes [B, L, k, 4] and scores [B, L, k] of offsets [B, k_l, 4], anchors [B, k_l, 4] and scores [B, k_l].

    k is that of the longest level; places left over, and boxes that are too small, have scores of minus infinity.
    """
    longest = max(scores.shape[1] for _, _, scores in levels)
    offsets, anchors = (
        torch.stack([F.pad(each, (0, 0, 0, longest - each.shape[1])) for each in some], dim=1)
        for some in ([level[0] for level in levels], [level[1] for level in levels])
    )
    scores = torch.stack(
        [F.pad(each, (0, longest - each.shape[1]), value=float("-inf")) for _, _, each in levels], dim=1
    )
    return decode_boxes(offsets, anchors, scores, image_sizes, weights=_UNIT, min_size=min_size)


def _suppress_within_levels(boxes: Tensor, scores: Tensor, config: ModelConfig, capacity: int) -> Proposals:
    """One segment of NMS for each image and level, boxes [B, L, k, 4]; then the best of all levels."""
    images, levels, longest = scores.shape
    max_keep = min(capacity, longest)
    keep, _ = segmented_nms(boxes.flatten(0, 1), scores.flatten(0, 1), config.rpn_nms_iou, max_keep)
    keep = keep.view(images, levels, max_keep)
    kept_scores = torch.where(keep >= 0, scores.gather(2, keep.clamp(min=0)), float("-inf")).flatten(1)
    kept_boxes = boxes.gather(2, keep.clamp(min=0)[..., None].expand(-1, -1, -1, 4)).flatten(1, 2)
    best = torch.sort(kept_scores, dim=1, descending=True, stable=True)
    order, ranked = best.indices[:, :capacity], best.values[:, :capacity]
    present = ranked > float("-inf")
    chosen = kept_boxes.gather(1, order[..., None].expand(-1, -1, 4))
    return Proposals(
        boxes=torch.where(present[..., None], chosen, 0.0),
        scores=torch.where(present, ranked, 0.0),
        counts=present.sum(dim=1),
    )

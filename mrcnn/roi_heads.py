"""The two branches of section 3: class and box from 7x7 RoI features, and a mask a class from 14x14."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels import decode_boxes, mask_predict, mask_predict_loss, multiscale_roi_align, segmented_nms
from mrcnn.boxes import at_least_float32, encode
from mrcnn.config import ModelConfig
from mrcnn.preprocess import Batch, Targets
from mrcnn.rpn import Proposals
from mrcnn.sampling import IGNORED, match, sample

_OFFSET_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_BETA = 1 / 9
_SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


@dataclass(frozen=True)
class SampledRoIs:
    """K RoIs to train on, those of an image one after another."""

    rois: Tensor  # [K, 5] image index, x1, y1, x2, y2
    labels: Tensor  # [K] 0 for background
    offsets: Tensor  # [K, 4] that the box branch should predict, where the label is not 0
    weights: Tensor  # [K] 1, or 0 for places left over
    mask_rois: "MaskRoIs"

    def trim(self) -> "SampledRoIs":
        """Without the places left over. Waits for the device."""
        used = self.weights > 0
        return SampledRoIs(
            self.rois[used], self.labels[used], self.offsets[used], self.weights[used], self.mask_rois.trim()
        )


@dataclass(frozen=True)
class MaskRoIs:
    """The positives among the sampled RoIs, for the mask branch."""

    rois: Tensor  # [P, 5] image index, x1, y1, x2, y2
    labels: Tensor  # [P]
    gt_index: Tensor  # [P] into the masks of all images
    weights: Tensor  # [P] 1, or 0 for places left over

    def trim(self) -> "MaskRoIs":
        """Without the places left over. Waits for the device."""
        used = self.weights > 0
        return MaskRoIs(self.rois[used], self.labels[used], self.gt_index[used], self.weights[used])


@dataclass(frozen=True)
class Detections:
    """A fixed number D of detections for each image, by descending score, of which the first counts [B] are real."""

    boxes: Tensor  # [B, D, 4] in pixels of the network's input
    labels: Tensor  # [B, D]
    scores: Tensor  # [B, D]
    counts: Tensor  # [B]

    def trim(self) -> "Detections":
        """Without the places that no image needs. Waits for the device."""
        most = int(self.counts.max())
        return Detections(self.boxes[:, :most], self.labels[:, :most], self.scores[:, :most], self.counts)


class BoxBranch(nn.Module):
    """Two hidden layers, then class logits and class-specific box offsets."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pool, self.aligned = config.box_pool, config.aligned
        # Features come with channels last, so a RoI is flattened as (y, x, channel).
        self.fc6 = nn.Linear(config.fpn_channels * config.box_pool**2, config.box_hidden)
        self.fc7 = nn.Linear(config.box_hidden, config.box_hidden)
        self.classes = nn.Linear(config.box_hidden, config.num_classes)
        self.offsets = nn.Linear(config.box_hidden, 4 * config.num_classes)
        # Small outputs at the start: no class preferred, no box moved.
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.offsets.weight, std=0.001)
        for layer in (self.classes, self.offsets):
            nn.init.zeros_(layer.bias)

    def forward(self, features: list[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Pyramid P2 to P5 and rois [K, 5]; class logits [K, classes] and offsets [K, classes, 4]."""
        pooled = multiscale_roi_align(features, rois, self.pool, _SCALES, aligned=self.aligned)
        hidden = F.relu(self.fc6(pooled.permute(0, 2, 3, 1).flatten(1)))
        hidden = F.relu(self.fc7(hidden))
        offsets: Tensor = self.offsets(hidden)
        return at_least_float32(self.classes(hidden)), at_least_float32(offsets).unflatten(1, (-1, 4))


class MaskBranch(nn.Module):
    """A small fully convolutional network (figure 4, right) that predicts a mask for each class."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pool, self.aligned = config.mask_pool, config.aligned
        channels = [config.fpn_channels, *[config.mask_channels] * config.mask_convs]
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(channels))
        self.up = nn.ConvTranspose2d(channels[-1], config.mask_channels, 2, stride=2)
        self.logits = nn.Conv2d(config.mask_channels, config.num_classes, 1)
        for layer in [*self.convs, self.up, self.logits]:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.logits.weight, std=0.001)  # all pixels as likely as not at the start

    def forward(self, features: list[Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """Pyramid P2 to P5, rois [K, 5] and their classes [K]; mask probabilities [K, M, M] of these classes.

        The last 1x1 convolution is computed for the wanted class only: all classes would be 80 times the result.
        """
        return mask_predict(self._upsampled(features, rois), *self._last(), labels)

    def loss(self, features: list[Tensor], positives: MaskRoIs, boxes: Tensor, gt_masks: Tensor) -> Tensor:
        """The mask loss of positives; boxes [P, 4] are theirs, in pixels of gt_masks [G, H, W]."""
        upsampled = self._upsampled(features, positives.rois)
        targets = (boxes, gt_masks, positives.gt_index, positives.weights)
        return mask_predict_loss(upsampled, *self._last(), positives.labels, *targets)

    def _upsampled(self, features: list[Tensor], rois: Tensor) -> Tensor:
        """What the last convolution is applied to, in 2x2 blocks [K, M/2, M/2, 2, 2, C]."""
        x = multiscale_roi_align(features, rois, self.pool, _SCALES, aligned=self.aligned)
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        # A 2x2 transposed convolution with stride 2 makes four pixels of each one: a matrix product over pixels.
        weight = self.up.weight.permute(2, 3, 1, 0).flatten(0, 2)
        bias = self.up.bias.repeat(4)  # type: ignore[union-attr]
        pixels = F.relu(F.linear(x.permute(0, 2, 3, 1), weight, bias), inplace=True)
        blocks: Tensor = pixels.unflatten(3, (2, 2, -1))
        return blocks

    def _last(self) -> tuple[Tensor, Tensor]:
        """Weight [classes, C] and bias [classes] of the last convolution."""
        return self.logits.weight.flatten(1), self.logits.bias  # type: ignore[return-value]


class RoIHeads(nn.Module):
    """Box and mask branch, the sampling of RoIs for their training, and the choice of detections."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.box = BoxBranch(config)
        self.mask = MaskBranch(config)

    @torch.no_grad()
    def sample(self, proposals: Proposals, targets: Targets) -> SampledRoIs:
        """RoIs at 1 positive to 3 negatives out of proposals and ground truth (section 3.1)."""
        config = self.config
        images, capacity = targets.labels.shape
        boxes = torch.cat([proposals.boxes, targets.boxes], dim=1)
        gt_present = torch.arange(capacity, device=boxes.device) < targets.counts[:, None]
        present = torch.cat([proposals.present(), gt_present], dim=1)
        matched = match(boxes, targets.boxes, targets.counts, config.roi_fg_iou, config.roi_fg_iou)
        chosen = sample(torch.where(present, matched.kind, IGNORED), config.roi_samples, config.roi_positive_fraction)
        index4 = chosen.index[..., None].expand(-1, -1, 4)
        chosen_boxes = boxes.gather(1, index4)
        image = torch.arange(images, device=boxes.device)[:, None].expand_as(chosen.index)
        rois = torch.cat([image[..., None].to(boxes.dtype), chosen_boxes], dim=2)
        if capacity == 0:
            labels, gt_index = torch.zeros_like(chosen.index), torch.zeros_like(chosen.index)
            offsets = torch.zeros_like(chosen_boxes)
        else:
            gt_index = matched.gt_index.gather(1, chosen.index)
            labels = torch.where(chosen.positive, targets.labels.gather(1, gt_index), 0)
            gt_boxes = targets.boxes.gather(1, gt_index[..., None].expand(-1, -1, 4))
            wanted = torch.where(chosen.positive[..., None], gt_boxes, chosen_boxes)
            # A place left over may hold a box without size, whose offsets are not numbers.
            offsets = encode(wanted, chosen_boxes, _OFFSET_WEIGHTS)
            offsets = torch.where(chosen.positive[..., None], offsets, 0.0)
        slots = min(config.mask_slots, chosen.index.shape[1])
        return SampledRoIs(
            rois=rois.flatten(0, 1),
            labels=labels.flatten(),
            offsets=offsets.flatten(0, 1),
            weights=chosen.weight.flatten(),
            mask_rois=MaskRoIs(
                rois=rois[:, :slots].flatten(0, 1),
                labels=labels[:, :slots].flatten(),
                gt_index=(gt_index + capacity * image)[:, :slots].flatten(),
                weights=chosen.positive[:, :slots].to(torch.float32).flatten(),
            ),
        )

    def losses(self, features: list[Tensor], sampled: SampledRoIs, gt_masks: Tensor) -> dict[str, Tensor]:
        """Class, box and mask loss (section 3); gt_masks: [B, G, H, W] in pixels of the network's input."""
        logits, offsets = self.box(features, sampled.rois)
        total = sampled.weights.sum().clamp(min=1)
        entropy = F.cross_entropy(logits, sampled.labels, reduction="none")
        own = offsets.gather(1, sampled.labels[:, None, None].expand(-1, -1, 4))[:, 0]
        distance = F.smooth_l1_loss(own, sampled.offsets, beta=_BETA, reduction="none").sum(dim=1)
        return {
            "loss_classifier": (entropy * sampled.weights).sum() / total,
            "loss_box_reg": torch.where(sampled.labels > 0, distance, 0.0).sum() / total,
            "loss_mask": self._mask_loss(features, sampled.mask_rois, gt_masks),
        }

    def _mask_loss(self, features: list[Tensor], positives: MaskRoIs, gt_masks: Tensor) -> Tensor:
        masks = gt_masks.flatten(0, 1)
        if positives.rois.shape[0] == 0 or masks.shape[0] == 0:
            # No objects: a zero that still belongs to the branch's graph, as distributed training wants.
            return torch.stack([parameter.sum() * 0.0 for parameter in self.mask.parameters()]).sum()
        # `mask_predict_loss` takes a pixel's value to be at its corner.
        boxes = positives.rois[:, 1:] - (0.5 if self.config.aligned else 0.0)
        return self.mask.loss(features, positives, boxes, masks)

    @torch.no_grad()
    def detect(self, features: list[Tensor], proposals: Proposals, batch: Batch) -> Detections:
        """Classifies the proposals and keeps the best boxes after non-maximum suppression within each class."""
        config = self.config
        images, number = proposals.scores.shape
        image = torch.arange(images, device=proposals.boxes.device).repeat_interleave(number)
        rois = torch.cat([image[:, None].to(proposals.boxes.dtype), proposals.boxes.flatten(0, 1)], dim=1)
        logits, offsets = self.box(features, rois)
        scores = logits.softmax(dim=1)[:, 1:].unflatten(0, (images, number)).transpose(1, 2)  # [B, classes, R]
        boxes, scores = decode_boxes(
            offsets[:, 1:].unflatten(0, (images, number)).transpose(1, 2),
            proposals.boxes[:, None],
            scores,
            batch.sizes,
            proposals.counts,
            weights=_OFFSET_WEIGHTS,
            min_size=config.box_min_size,
            score_threshold=config.box_score_threshold,
        )
        return _best_of_classes(boxes, scores, config)

    @torch.no_grad()
    def masks(self, features: list[Tensor], detections: Detections) -> Tensor:
        """Mask probabilities [B, D, M, M] of the detected classes (section 3.1, inference)."""
        images, number = detections.labels.shape
        if number == 0:
            side = 2 * self.config.mask_pool
            return detections.boxes.new_zeros((images, 0, side, side))
        image = torch.arange(images, device=detections.boxes.device).repeat_interleave(number)
        rois = torch.cat([image[:, None].to(detections.boxes.dtype), detections.boxes.flatten(0, 1)], dim=1)
        probabilities: Tensor = self.mask(features, rois, detections.labels.flatten()).unflatten(0, (images, number))
        return probabilities


def _best_of_classes(boxes: Tensor, scores: Tensor, config: ModelConfig) -> Detections:
    """One segment of NMS for each image and class, boxes [B, C, R, 4]; then the best of all classes."""
    images, classes, number = scores.shape
    capacity = min(config.detections_per_image, classes * number)
    max_keep = min(capacity, number)  # a class can give no more than all classes together
    keep, _ = segmented_nms(boxes.flatten(0, 1), scores.flatten(0, 1), config.box_nms_iou, max_keep)
    keep = keep.view(images, classes, max_keep)
    kept_scores = torch.where(keep >= 0, scores.gather(2, keep.clamp(min=0)), float("-inf")).flatten(1)
    kept_boxes = boxes.gather(2, keep.clamp(min=0)[..., None].expand(-1, -1, -1, 4)).flatten(1, 2)
    best = torch.sort(kept_scores, dim=1, descending=True, stable=True)
    order, ranked = best.indices[:, :capacity], best.values[:, :capacity]
    present = ranked > float("-inf")
    chosen = kept_boxes.gather(1, order[..., None].expand(-1, -1, 4))
    return Detections(
        boxes=torch.where(present[..., None], chosen, 0.0),
        labels=torch.where(present, order // max_keep + 1, 0),
        scores=torch.where(present, ranked, 0.0),
        counts=present.sum(dim=1),
    )

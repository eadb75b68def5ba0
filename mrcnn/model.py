"""Mask R-CNN (He et al., 2017), the whole forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kernels.paste_masks import Rule
from mrcnn.backbone import ResNet
from mrcnn.config import ModelConfig
from mrcnn.fpn import FPN
from mrcnn.postprocess import MaskFormat, to_images
from mrcnn.preprocess import Batch, Targets, make_batch, make_targets
from mrcnn.presets import PRESETS
from mrcnn.roi_heads import Detections, RoIHeads
from mrcnn.rpn import RegionProposalNetwork


def build_model(name: str, num_classes: int = 91, **changes: Any) -> "MaskRCNN":
    """A model with random weights.

    Args:
        name: a key of `mrcnn.PRESETS`.
        num_classes: counts the background, which is label 0.
        changes: fields of `ModelConfig` that differ from the preset.

    Raises:
        ValueError: there is no such preset or field, or `num_classes` is below 2.
    """
    if name not in PRESETS:
        raise ValueError(f"name is {name!r}; it must be one of {sorted(PRESETS)}")
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; it counts the background and must be at least 2")
    unknown = sorted(set(changes) - set(ModelConfig.__dataclass_fields__))
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is no field of ModelConfig; see mrcnn/config.py")
    return MaskRCNN(replace(PRESETS[name], num_classes=num_classes, **changes))


class MaskRCNN(nn.Module):
    """Takes and returns what torchvision's detection models do.

    In training: images and targets in, a dict of losses out. Else: images in, a list of detections out.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet(config.resnet_depth, config.norm)
        self.fpn = FPN(self.backbone.channels, config.fpn_channels)
        self.rpn = RegionProposalNetwork(config)
        self.roi_heads = RoIHeads(config)
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
        mask_format: MaskFormat = "prob",
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses in training, detections else.

        Args:
            images: each [3, H, W] with values 0 to 1; sizes may differ.
            targets: for training, one dict an image with boxes [G, 4] as x1, y1, x2, y2 in pixels, labels [G] from
                1 up, and masks [G, H, W] of 0 and 1. G may be 0.
            mask_format: how masks come, see `mrcnn.postprocess.to_images`.

        Raises:
            ValueError: an image or target has a wrong shape or dtype, or targets are missing.
        """
        batch = make_batch(images, self.config)
        # Where waiting for the device costs nothing, places of fixed size that stay empty are not computed.
        trim = batch.images.device.type == "cpu"
        if not self.training:
            detections, crops = self.detect(batch, trim=trim)
            rule: Rule = "centers" if self.config.aligned else "torchvision"
            return to_images(detections, crops, batch, mask_format, rule)
        if targets is None:
            raise ValueError("targets is None; a model in training needs one for each image (or call model.eval())")
        return self.losses(batch, make_targets(targets, batch, self.config.num_classes), trim=trim)

    def losses(self, batch: Batch, targets: Targets, *, trim: bool = False) -> dict[str, Tensor]:
        """The five losses, to be summed. Without `trim` no value is asked of the device, and all sizes are fixed."""
        features = self.fpn(self.backbone(batch.images))
        anchors = self.rpn.anchors(features, batch)
        proposals = self.rpn.propose(features, anchors, batch)
        sampled_anchors, offsets = self.rpn.sample(anchors, targets)
        sampled_rois = self.roi_heads.sample(proposals, targets)
        if trim:
            sampled_rois = sampled_rois.trim()
        return {
            **self.rpn.losses(features, sampled_anchors, offsets),
            **self.roi_heads.losses(features[:4], sampled_rois, targets.masks),
        }

    @torch.no_grad()
    def detect(self, batch: Batch, *, trim: bool = False) -> tuple[Detections, Tensor]:
        """Detections and their mask probabilities [B, D, M, M]. Without `trim` all sizes are fixed, as in `losses`."""
        features = self.fpn(self.backbone(batch.images))
        proposals = self.rpn.propose(features, self.rpn.anchors(features, batch), batch)
        if trim:
            proposals = proposals.trim()
        detections = self.roi_heads.detect(features[:4], proposals, batch)
        if trim:
            detections = detections.trim()
        return detections, self.roi_heads.masks(features[:4], detections)

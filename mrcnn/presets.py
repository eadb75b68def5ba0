"""Named models."""

from collections.abc import Mapping
from types import MappingProxyType

from mrcnn.config import ModelConfig

PRESETS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            # Table 2a's R50-FPN; torchvision's maskrcnn_resnet50_fpn.
            ModelConfig(name="mask_rcnn_r50_fpn"),
            # Trains from scratch on small data: group norm needs neither pretrained statistics nor large batches.
            ModelConfig(
                name="mask_rcnn_r18_fpn_gn",
                resnet_depth=18,
                norm="group",
                min_size=288,
                max_size=512,
            ),
        )
    }
)

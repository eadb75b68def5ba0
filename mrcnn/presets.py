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
            # Trains from scratch on small data and small machines: group norm needs neither pretrained statistics nor
            # large batches; images of a third of the usual side have smaller objects and need fewer RoIs, and half
            # the width is enough for a few classes. Half a pixel counts where objects are small.
            ModelConfig(
                name="mask_rcnn_r18_fpn_gn",
                resnet_depth=18,
                norm="group",
                aligned=True,
                min_size=288,
                max_size=512,
                fpn_channels=128,
                anchor_sizes=(16, 32, 64, 128, 256),
                proposals_per_level_train=500,
                proposals_train=500,
                roi_samples=128,
                box_hidden=512,
                mask_channels=128,
            ),
        )
    }
)

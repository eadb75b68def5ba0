"""What a Mask R-CNN is made of: every number of the paper that a user may want to change."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """A model's architecture and its constants; lengths are pixels of the network's input."""

    name: str
    num_classes: int = 91
    """Counts the background, which is label 0."""

    # Input (section 3.1)
    min_size: int = 800
    """Images are resized so that the short side has this length,"""
    max_size: int = 1333
    """unless the long side would pass this one."""
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    # Backbone: ResNet with a feature pyramid
    resnet_depth: Literal[18, 50] = 50
    norm: Literal["frozen_batch", "group"] = "frozen_batch"
    fpn_channels: int = 256

    # Region proposal network
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Side of the square anchor on each level, P2 to P6."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""
    rpn_fg_iou: float = 0.7
    rpn_bg_iou: float = 0.3
    rpn_samples: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_nms_iou: float = 0.7
    rpn_min_size: float = 1e-3
    proposals_per_level_train: int = 2000
    proposals_per_level_test: int = 1000
    proposals_train: int = 2000
    proposals_test: int = 1000

    # Both branches
    aligned: bool = False
    """A pixel's value is that of its centre, half a pixel from its corner: RoIAlign, the targets of masks and pasting
    heed it, as in Detectron2. Without, as in torchvision, masks are off by about half a pixel, which matters for small
    objects."""

    # Box branch
    roi_fg_iou: float = 0.5
    roi_samples: int = 512
    roi_positive_fraction: float = 0.25
    box_pool: int = 7
    box_hidden: int = 1024
    box_score_threshold: float = 0.05
    box_nms_iou: float = 0.5
    box_min_size: float = 1e-2
    detections_per_image: int = 100

    # Mask branch
    mask_pool: int = 14
    mask_channels: int = 256
    mask_convs: int = 4

    @property
    def mask_slots(self) -> int:
        """Most RoIs an image that the mask branch trains on: the positives among the sampled."""
        return int(self.roi_samples * self.roi_positive_fraction)

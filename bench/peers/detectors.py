"""torchvision's models, set up for comparison."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor, resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from mrcnn import ModelConfig

# A trained network's residual branches add little to their shortcuts. With random weights and branches as strong as
# the shortcuts, rounding errors grow a hundredfold from the first layer to the last, and no two programs agree.
_BRANCH_SCALE = 0.3


def r50_fpn(**arguments: int) -> MaskRCNN:
    """`maskrcnn_resnet50_fpn` with frozen norms, in evaluation mode, with random weights."""
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
    return MaskRCNN(backbone, 91, **arguments).eval()


def r18_fpn_gn(config: ModelConfig) -> MaskRCNN:
    """torchvision's Mask R-CNN on the backbone, input size and anchors of `mask_rcnn_r18_fpn_gn`."""
    backbone = _resnet_fpn_extractor(resnet18(norm_layer=lambda channels: nn.GroupNorm(32, channels)), 5)
    anchors = AnchorGenerator(tuple((size,) for size in config.anchor_sizes), (config.anchor_ratios,) * 5)
    return MaskRCNN(
        backbone,
        config.num_classes,
        min_size=config.min_size,
        max_size=config.max_size,
        rpn_anchor_generator=anchors,
    )


@torch.no_grad()
def calibrate(model: MaskRCNN, photo: Tensor) -> None:
    """Makes random weights behave like trained ones on a photo: normal activations, scores neither tied nor saturated.

    Sets the statistics of each frozen norm from its input, then scales the outputs of the predictors.
    """
    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    for name, module in model.named_modules():
        if name.endswith("bn3"):
            module.weight.fill_(_BRANCH_SCALE)
    with _hooks(norms):
        model([photo])
    predictors = {
        model.rpn.head.cls_logits: 1.5,
        model.rpn.head.bbox_pred: 0.5,
        model.roi_heads.box_predictor.cls_score: 1.5,
        model.roi_heads.box_predictor.bbox_pred: 0.5,
        model.roi_heads.mask_predictor.mask_fcn_logits: 2.0,
    }
    for predictor, deviation in predictors.items():
        outputs: list[Tensor] = []
        hook = predictor.register_forward_hook(
            lambda _module, _inputs, output, into=outputs: into.append(output.flatten())
        )
        model([photo])
        hook.remove()
        factor = deviation / torch.cat(outputs).std()
        predictor.weight.mul_(factor)
        predictor.bias.mul_(factor)


@contextmanager
def _hooks(norms: list[FrozenBatchNorm2d]) -> Iterator[None]:
    def take_statistics(norm: FrozenBatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        norm.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        norm.running_var.copy_(inputs[0].var(dim=(0, 2, 3)))

    hooks = [norm.register_forward_pre_hook(take_statistics) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

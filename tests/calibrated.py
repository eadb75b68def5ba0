"""torchvision's Mask R-CNN with random weights that determine its results well, to compare ours with.

Freshly drawn weights do not: activations grow from block to block, classes tie or saturate, and rounding noise decides
what comes out. As in a trained network, here residual branches are small, frozen norms know their inputs, and the
predictors' outputs have a sensible spread.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

# Chosen so that torchvision's best detections on the photos are clearly ranked; the test of parity holds it to that.
SEED = 34
# Scale of each residual branch. The larger, the more a network amplifies its rounding noise.
RESIDUAL = 0.1


def build_peer(**changes: Any) -> MaskRCNN:
    """torchvision's `maskrcnn_resnet50_fpn` in eval mode, with frozen norms though nothing is pretrained."""
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
    return MaskRCNN(backbone, **{"num_classes": 91, "min_size": 320, "max_size": 512, **changes}).eval()


@torch.no_grad()
def calibrated_weights(photo: Tensor, seed: int = SEED, **changes: Any) -> dict[str, Tensor]:
    """torchvision's state dict, random weights set to rights on one photo [3, H, W]; changes as in `build_peer`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peer = build_peer(**changes)
    _calibrate_norms(peer, photo)
    images, _ = peer.transform([photo])
    features = peer.backbone(images.tensors)
    heads = peer.roi_heads

    hidden = [peer.rpn.head.conv(feature) for feature in features.values()]
    _spread(peer.rpn.head.cls_logits, 1.5, hidden)
    _spread(peer.rpn.head.bbox_pred, 0.5, hidden)

    proposals, _ = peer.rpn(images, features)
    hidden = [heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes))]
    _spread(heads.box_predictor.cls_score, 1.5, hidden)
    _spread(heads.box_predictor.bbox_pred, 0.5, hidden)

    best = [proposals[0][:50]]
    hidden = [heads.mask_head(heads.mask_roi_pool(features, best, images.image_sizes))]
    hidden = [heads.mask_predictor.conv5_mask(each).relu() for each in hidden]
    _spread(heads.mask_predictor.mask_fcn_logits, 2.0, hidden)
    state: dict[str, Tensor] = peer.state_dict()
    return state


def _calibrate_norms(peer: MaskRCNN, photo: Tensor) -> None:
    """Gives each frozen norm the statistics of its input, front to back."""

    def observe(norm: FrozenBatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        statistics = {"running_mean": inputs[0].mean(dim=(0, 2, 3)), "running_var": inputs[0].var(dim=(0, 2, 3))}
        norm.load_state_dict(statistics, strict=False)

    for module in peer.modules():
        if hasattr(module, "bn3"):
            module.bn3.weight.fill_(RESIDUAL)
    norms = [module for module in peer.modules() if isinstance(module, FrozenBatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(observe) for norm in norms]
    peer.backbone(peer.transform([photo])[0].tensors)
    for hook in hooks:
        hook.remove()


def _spread(predictor: nn.Module, deviation: float, inputs: Iterable[Tensor]) -> None:
    """Scales a linear layer so that its outputs for all inputs together have a standard deviation."""
    outputs = torch.cat([predictor(each).flatten() for each in inputs])
    for parameter in predictor.parameters():
        parameter.mul_(deviation / outputs.std())

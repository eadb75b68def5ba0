"""torchvision's `maskrcnn_resnet50_fpn` state dict, by its names of today and those of its published file."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mrcnn.backbone import NORM_EPS
from mrcnn.config import ModelConfig

# Theirs to ours; the (\.0)? are layers that later versions wrapped once more.
_RENAMED: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"backbone\.body\.layer(\d)\.", lambda m: f"backbone.stages.{int(m[1]) - 1}."),
    (r"backbone\.body\.", "backbone."),
    (r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.", r"fpn.lateral.\1."),
    (r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.", r"fpn.output.\1."),
    (r"rpn\.head\.conv(?:\.0\.0)?\.", "rpn.conv."),
    (r"rpn\.head\.cls_logits\.", "rpn.objectness."),
    (r"rpn\.head\.bbox_pred\.", "rpn.offsets."),
    (r"roi_heads\.box_head\.", "roi_heads.box."),
    (r"roi_heads\.box_predictor\.cls_score\.", "roi_heads.box.classes."),
    (r"roi_heads\.box_predictor\.bbox_pred\.", "roi_heads.box.offsets."),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.", lambda m: f"roi_heads.mask.convs.{int(m[1]) - 1}."),
    (r"roi_heads\.mask_head\.(\d)\.0\.", r"roi_heads.mask.convs.\1."),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", "roi_heads.mask.up."),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "roi_heads.mask.logits."),
]


def is_torchvision(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a torchvision Mask R-CNN."""
    return "roi_heads.box_predictor.cls_score.weight" in state and "backbone.body.conv1.weight" in state


def from_torchvision(
    state: Mapping[str, Tensor], config: ModelConfig, norm_eps: float | None = None
) -> dict[str, Tensor]:
    """The same weights by our names, in our layout and for our epsilon of frozen norms.

    `norm_eps` is the epsilon that they were trained with. A state dict does not hold it: torchvision's published file
    was made when there was none, and torchvision sets it to 0 for that file only. That file still has the names of its
    time, by which it is told from newer ones where `norm_eps` is None.
    """
    if norm_eps is None:
        norm_eps = 0.0 if "backbone.fpn.inner_blocks.0.weight" in state else NORM_EPS
    converted = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        for pattern, replacement in _RENAMED:
            new_name, found = re.subn("^" + pattern, replacement, name)
            if found:
                break
        converted[new_name] = value
    # They flatten a RoI as (channel, y, x), we as (y, x, channel). What does not fit is left for the caller to name.
    fc6 = converted.get("roi_heads.box.fc6.weight")
    if fc6 is not None and fc6.ndim == 2 and fc6.shape[1] % config.box_pool**2 == 0:
        by_pixel = fc6.unflatten(1, (-1, config.box_pool, config.box_pool)).permute(0, 2, 3, 1)
        converted["roi_heads.box.fc6.weight"] = by_pixel.flatten(1).contiguous()
    _change_eps(converted, norm_eps)
    return converted


def _change_eps(state: dict[str, Tensor], eps: float) -> None:
    """Scales the weight of each frozen norm so that with `NORM_EPS` it gives what it gave with `eps`."""
    if eps == NORM_EPS:
        return
    for name in [name for name in state if name.endswith(".running_var")]:
        variance, weight = state[name].double(), name.removesuffix("running_var") + "weight"
        if weight in state:
            ratio = torch.sqrt((variance + NORM_EPS) / (variance + eps))
            state[weight] = (state[weight].double() * ratio).to(state[weight].dtype)

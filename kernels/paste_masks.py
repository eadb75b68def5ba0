"""Masks of boxes pasted into the image (Mask R-CNN, section 3.1, inference)."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kernels.dispatch import implementation_for, run

Rule = Literal["torchvision", "centers"]


def paste_masks(
    masks: Tensor,
    boxes: Tensor,
    image_size: tuple[int, int],
    threshold: float | None = 0.5,
    rule: Rule = "torchvision",
) -> Tensor:
    """Resizes each mask to its box and pastes it into an image of zeros.

    Args:
        masks: probabilities [N, M, M] or [N, 1, M, M] in float32, float16, bfloat16 or float64.
        boxes: [N, 4] as x1, y1, x2, y2 in pixels of the image; with a NaN or infinite coordinate nothing is pasted.
        image_size: height and width of the image.
        threshold: a pixel belongs to the mask above it ("centers": from it on); None gives the probabilities.
        rule: "torchvision" pads the mask, rounds the box to whole pixels and resizes; "centers" samples the mask at
            the centre of each pixel, as Detectron2.

    Returns:
        [N, H, W] in bool, or probabilities in float32 (float64 for float64) if `threshold` is None.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    height, width = image_size
    _check(masks, boxes, height, width, threshold, rule)
    result: Tensor = _paste_masks(masks, boxes, height, width, threshold, rule, implementation_for(masks))
    return result


def _check(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float | None, rule: str) -> None:
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or not masks.is_floating_point():
        raise ValueError(f"masks is {tuple(masks.shape)} in {masks.dtype}; it must be N x M x M in floating point")
    if boxes.shape != (masks.shape[0], 4) or not boxes.is_floating_point():
        raise ValueError(
            f"boxes is {tuple(boxes.shape)} in {boxes.dtype}; it must be {masks.shape[0]} x 4 in floating point"
        )
    if boxes.device != masks.device:
        raise ValueError(f"boxes is on {boxes.device}; it must be on the masks' device, {masks.device}")
    if height < 1 or width < 1:
        raise ValueError(f"image_size is {(height, width)}; height and width must be at least 1")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be from 0 to 1, or None")
    if rule not in get_args(Rule):
        raise ValueError(f"rule is {rule!r}; it must be one of {get_args(Rule)}")


@torch.library.custom_op("mrcnn::paste_masks", mutates_args=())
def _paste_masks(
    masks: Tensor,
    boxes: Tensor,
    height: int,
    width: int,
    threshold: float | None,
    rule: str,
    implementation: str,
) -> Tensor:
    arguments = (masks, boxes, (height, width), threshold, rule)
    result: Tensor = run(implementation, "paste_masks", "paste_masks", masks.device, *arguments)
    return result


@_paste_masks.register_fake
def _(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float | None, *args: Any) -> Tensor:
    dtype = torch.promote_types(masks.dtype, torch.float32) if threshold is None else torch.bool
    return masks.new_empty((masks.shape[0], height, width), dtype=dtype)

"""Masks of boxes pasted into the image (Mask R-CNN, section 3.1, inference)."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kernels.checks import check_number, check_size, check_tensor
from kernels.dispatch import asked_for, run

Rule = Literal["torchvision", "centers"]


def paste_masks(
    masks: Tensor,
    boxes: Tensor,
    image_size: tuple[int, int],
    threshold: float | None = 0.5,
    rule: Rule = "torchvision",
) -> Tensor:
    """Resizes each mask to its box and pastes it into an image of zeros. Asked for a gradient it raises.

    Args:
        masks: probabilities [N, M, M] or [N, 1, M, M] in float32, float16, bfloat16 or float64.
        boxes: [N, 4] as x1, y1, x2, y2 in pixels of the image, in floating point; half precision is taken as float32.
            With a NaN or infinite coordinate nothing is pasted.
        image_size: height and width of the image.
        threshold: 0 to 1; a pixel belongs to the mask above it ("centers": from it on, so from 0 on every pixel of the
            image does, wherever a mask is pasted and if none is); None gives the probabilities.
        rule: "torchvision" pads the mask, rounds the box to whole pixels and resizes; "centers" samples the mask at
            the centre of each pixel, as Detectron2.

    Returns:
        [N, H, W] in bool, or probabilities in float32 (float64 for float64) if `threshold` is None.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or range.
    """
    masks = checked(masks, boxes, image_size, rule)
    if threshold is not None:
        check_number("threshold", threshold, 0, 1)
    height, width = image_size
    result: Tensor = _paste_masks(masks, boxes, height, width, threshold, rule, asked_for())
    return result


def checked(masks: Tensor, boxes: Tensor, image_size: tuple[int, int], rule: str) -> Tensor:
    """What every function that pastes asks of these; the masks as [N, M, M]."""
    check_tensor("masks", masks, ("N", "M", "M"), ("N", 1, "M", "M"), filled=("M",))
    check_tensor("boxes", boxes, (masks.shape[0], 4), device=masks.device)
    check_size("image_size", image_size)
    if rule not in get_args(Rule):
        raise ValueError(f"rule is {rule!r}; it must be one of {get_args(Rule)}")
    return masks if masks.ndim == 3 else masks[:, 0]


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

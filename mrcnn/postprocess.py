"""Detections in the form that a caller wants: boxes in pixels of the original image, masks as wanted."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kernels import encode_masks, paste_masks
from kernels.paste_masks import Rule
from mrcnn.preprocess import Batch
from mrcnn.roi_heads import Detections

MaskFormat = Literal["prob", "bool", "rle", "crop"]


def to_images(
    detections: Detections, crops: Tensor, batch: Batch, mask_format: MaskFormat, rule: Rule = "torchvision"
) -> list[dict[str, Any]]:
    """One dict an image with boxes [D, 4], labels [D], scores [D] and masks; D is the number of real detections.

    Args:
        detections: B x D boxes in pixels of the network's input.
        crops: mask probabilities within each box [B, D, M, M].
        batch: holds the sizes of the images.
        mask_format: "prob": [D, 1, H, W] probabilities; "bool": [D, H, W], probability above one half; "rle": D COCO
            run-length encodings of the latter; "crop": [D, M, M] probabilities within each box.
        rule: how masks are pasted, see `kernels.paste_masks`.

    Raises:
        ValueError: `mask_format` is none of these.
    """
    if mask_format not in get_args(MaskFormat):
        raise ValueError(f"mask_format is {mask_format!r}; it must be one of {get_args(MaskFormat)}")
    results = []
    for image, count in enumerate(detections.counts.tolist()):
        (height, width), (new_height, new_width) = batch.original_sizes[image], batch.resized_sizes[image]
        # In float32 from the start, as torchvision computes it.
        scale = torch.tensor([width, height], dtype=torch.float32) / torch.tensor([new_width, new_height])
        boxes = detections.boxes[image, :count] * scale.repeat(2).to(detections.boxes.device)
        results.append(
            {
                "boxes": boxes,
                "labels": detections.labels[image, :count],
                "scores": detections.scores[image, :count],
                "masks": _format_masks(crops[image, :count], boxes, (height, width), mask_format, rule),
            }
        )
    return results


def _format_masks(
    crops: Tensor, boxes: Tensor, size: tuple[int, int], mask_format: MaskFormat, rule: Rule
) -> Tensor | list[dict[str, Any]]:
    if mask_format == "crop":
        return crops
    if mask_format == "prob":
        return paste_masks(crops, boxes, size, threshold=None, rule=rule)[:, None]
    if mask_format == "bool":
        return paste_masks(crops, boxes, size, rule=rule)
    # Never as pixels: a hundred whole masks of a large photo would fill the memory.
    encoded = encode_masks(crops, boxes, size, rule=rule)
    return [{**each, "counts": each["counts"].decode("ascii")} for each in encoded]

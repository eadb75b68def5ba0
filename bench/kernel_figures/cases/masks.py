"""Cases of masks in the image: pasted, and as COCO's runs."""

from functools import cache
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

import kernels
from bench.cases import FULL, Pyramid, Workload, mask_probabilities, proposals
from bench.kernel_figures.cases.case import Case, Inputs
from bench.peers import masks as peers
from bench.verification.scenes import largest_gap


def paste_masks(seed: int, workload: Workload = FULL) -> Case:
    """As bool, a byte a pixel."""
    image = workload.image_size

    def ours(inputs: Inputs) -> tuple[Tensor, ...]:
        return (kernels.paste_masks(inputs["masks"], inputs["boxes"], image, inputs["threshold"]),)

    return _case(
        "paste_masks",
        seed,
        workload,
        ours=ours,
        peer=lambda inputs: (_pasted(inputs, image),),
        least=lambda inputs: {"forward": _read(inputs) + len(inputs["masks"]) * image[0] * image[1]},
    )


def encode_masks(seed: int, workload: Workload = FULL) -> Case:
    """To the text, which is made on the host; torchvision's way is to paste, to copy the image and pycocotools."""
    image = workload.image_size

    def ours(inputs: Inputs) -> tuple[Tensor, ...]:
        return _texts(kernels.encode_masks(inputs["masks"], inputs["boxes"], image, inputs["threshold"]))

    return _case(
        "encode_masks",
        seed,
        workload,
        ours=ours,
        peer=lambda inputs: _texts(_encoded(inputs, image)),
        least=lambda inputs: {"forward": _read(inputs)},  # the texts are a few KB
    )


def mask_runs(seed: int, workload: Workload = FULL) -> Case:
    """What of `encode_masks` the device does, without a wait; torchvision's way is that of `encode_masks`."""
    image = workload.image_size

    def least(inputs: Inputs) -> dict[str, int]:
        number = len(inputs["masks"])
        return {"forward": _read(inputs) + number * (4 * (2 * image[1] + 1) + 8)}

    return _case(
        "mask_runs",
        seed,
        workload,
        ours=lambda inputs: kernels.mask_runs(inputs["masks"], inputs["boxes"], image, inputs["threshold"]),
        peer=lambda inputs: peers.mask_runs(
            inputs["masks"], inputs["boxes"], image, inputs["threshold"], "torchvision"
        ),
        least=least,
        timed_peer=lambda inputs: _texts(_encoded(inputs, image)),
    )


def _case(operation: str, seed: int, workload: Workload, **functions: Any) -> Case:
    height, width = workload.image_size

    def make(compute: torch.dtype, layout: str) -> Inputs:
        masks, boxes, threshold = _detections(seed, workload)
        return {"leaves": [], "masks": masks, "boxes": boxes, "threshold": threshold}

    shape = f"{workload.detections} into {height}x{width}"
    return Case(operation, shape, torch.float32, "contiguous", seed, make, **functions, exact=True)


@cache
def _detections(seed: int, workload: Workload) -> tuple[Tensor, Tensor, float]:
    """Masks [N, M, M], boxes [N, 4], and a threshold near 1/2 that no pixel is so near that rounding would decide."""
    height, width = workload.image_size
    boxes = proposals(Pyramid(1, height, width), workload.detections, seed=seed)[:, 1:].contiguous()
    masks = mask_probabilities(len(boxes), workload.mask_size, seed)
    near = []
    with kernels.use("eager"):
        for mask, box in zip(masks.double(), boxes.double(), strict=True):  # one by one, as there is an image of each
            pasted = kernels.paste_masks(mask[None], box[None], (height, width), None)
            near.append(pasted[(pasted - 0.5).abs() < 0.01])
    return masks, boxes, largest_gap(torch.cat(near))


def _pasted(inputs: Inputs, image: tuple[int, int]) -> Tensor:
    pasted = paste_masks_in_image(inputs["masks"][:, None], inputs["boxes"], image)[:, 0]
    masks: Tensor = pasted > inputs["threshold"]
    return masks


def _encoded(inputs: Inputs, image: tuple[int, int]) -> list[dict[str, Any]]:
    return [coco_mask.encode(np.asfortranarray(each)) for each in _pasted(inputs, image).byte().cpu().numpy()]


def _texts(encoded: list[dict[str, Any]]) -> tuple[Tensor, ...]:
    """Lengths of the texts, and all their bytes, on the host."""
    texts = [each["counts"] for each in encoded]
    return torch.tensor([len(text) for text in texts]), torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8)


def _read(inputs: Inputs) -> int:
    masks, boxes = inputs["masks"], inputs["boxes"]
    return int(masks.nbytes + boxes.nbytes)

"""Cases of the mask head: its loss."""

import torch
import torchvision
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models.detection.roi_heads import maskrcnn_loss

import kernels
from bench.cases import FULL, Workload, mask_targets
from bench.kernel_figures.cases.case import FORMATS, Case, Inputs


def mask_loss(ratio: int, dtype: torch.dtype, seed: int, workload: Workload = FULL) -> Case:
    """The loss with its gradient by the class channel is "forward", the dense gradient of the logits "backward"."""
    pyramid, size, classes = workload.pyramid, workload.mask_size, workload.classes

    def make(compute: torch.dtype, layout: str) -> Inputs:
        boxes, index, _, masks = mask_targets(pyramid, workload.mask_rois, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn((len(boxes), classes, size, size), generator=generator).to(dtype).to(compute)
        class_of = torch.randint(0, classes, (len(masks),), generator=generator)
        leaves = [logits.contiguous(memory_format=FORMATS[layout]).requires_grad_()]
        labels = class_of[index]
        return {
            "leaves": leaves,
            "boxes": boxes,
            "labels": labels,
            "index": index,
            "masks": masks,
            "class_of": class_of,
        }

    def ours(inputs: Inputs) -> tuple[Tensor, ...]:
        (logits,) = inputs["leaves"]
        arguments = (inputs["labels"], inputs["boxes"], inputs["masks"], inputs["index"])
        return (kernels.mask_loss(logits, *arguments, sampling_ratio=ratio),)

    def peer(inputs: Inputs) -> tuple[Tensor, ...]:
        (logits,) = inputs["leaves"]
        boxes = inputs["boxes"].to(logits.dtype)
        return (_torchvision_mask_loss(logits, {**inputs, "boxes": boxes}, ratio, pyramid.images),)

    def least(inputs: Inputs) -> dict[str, int]:
        """The class channel and the pixels under samples once; the class channel's gradient; the dense gradient."""
        (logits,) = inputs["leaves"]
        masks = torch.zeros(inputs["masks"][:, None].shape, requires_grad=True)
        rois = torch.cat([inputs["index"][:, None].float(), inputs["boxes"]], 1)
        (weight,) = torch.autograd.grad(torchvision.ops.roi_align(masks, rois, size, 1.0, ratio).sum(), masks)
        channel, residual = len(rois) * size * size * logits.element_size(), len(rois) * size * size * 4
        return {
            "forward": channel + int((weight != 0).sum()) + residual,
            "backward": residual + logits.numel() * logits.element_size(),
        }

    shape = f"{size}x{size}, {'adaptive' if ratio < 1 else f'ratio {ratio}'}"
    return Case("mask_loss", shape, dtype, "contiguous", seed, make, ours, peer, least)


def _torchvision_mask_loss(logits: Tensor, inputs: Inputs, ratio: int, images: int) -> Tensor:
    """`maskrcnn_loss`, and what it does but for another sampling ratio where one is asked for."""
    masks, boxes = inputs["masks"].chunk(images), inputs["boxes"].chunk(images)
    index = [each - image * len(masks[0]) for image, each in enumerate(inputs["index"].chunk(images))]
    if ratio < 1:
        loss: Tensor = maskrcnn_loss(logits, list(boxes), list(masks), list(inputs["class_of"].chunk(images)), index)
        return loss
    size = logits.shape[-1]
    targets = []
    for own_masks, own_boxes, own_index in zip(masks, boxes, index, strict=True):
        rois = torch.cat([own_index.to(own_boxes)[:, None], own_boxes], 1)
        features = own_masks[:, None].to(rois)
        targets.append(torchvision.ops.roi_align(features, rois, (size, size), 1.0, ratio)[:, 0])
    chosen = logits[torch.arange(len(logits), device=logits.device), inputs["labels"]]
    return binary_cross_entropy_with_logits(chosen, torch.cat(targets))

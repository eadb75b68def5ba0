"""Cases of the mask head: its loss and its last layer."""

import torch
import torchvision
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d
from torchvision.models.detection.roi_heads import maskrcnn_inference, maskrcnn_loss

import kernels
from bench.cases import FULL, Workload, mask_targets
from bench.kernel_figures.cases.case import FORMATS, Case, Inputs


def mask_loss(ratio: int, dtype: torch.dtype, seed: int, workload: Workload = FULL) -> Case:
    """The loss with its gradient by the class channel is "forward", the dense gradient of the logits "backward"."""
    pyramid, size, classes = workload.pyramid, workload.mask_size, workload.classes

    def make(compute: torch.dtype, layout: str) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        shape = (pyramid.images * workload.mask_rois, classes, size, size)
        logits = torch.randn(shape, generator=generator).to(dtype).to(compute)
        leaves = [logits.contiguous(memory_format=FORMATS[layout]).requires_grad_()]
        return {"leaves": leaves, **_targets(workload, seed, generator)}

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
        cells = len(logits) * size * size
        channel, residual = cells * logits.element_size(), cells * 4
        return {
            "forward": channel + _pixels_under_samples(inputs, size, ratio) + residual,
            "backward": residual + logits.numel() * logits.element_size(),
        }

    shape = f"{size}x{size}, {'adaptive' if ratio < 1 else f'ratio {ratio}'}"
    return Case("mask_loss", shape, dtype, "contiguous", seed, make, ours, peer, least)


def mask_predict_loss(dtype: torch.dtype, seed: int, workload: Workload = FULL) -> Case:
    """The last layer with the loss; torchvision's way is a convolution for all classes and `maskrcnn_loss`."""
    pyramid, size = workload.pyramid, workload.mask_size

    def make(compute: torch.dtype, layout: str) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        layer = _last_layer(workload, pyramid.images * workload.mask_rois, dtype, compute, layout, generator)
        return {"leaves": [each.requires_grad_() for each in layer], **_targets(workload, seed, generator)}

    def ours(inputs: Inputs) -> tuple[Tensor, ...]:
        features, weight, bias = inputs["leaves"]
        targets = (inputs["labels"], inputs["boxes"], inputs["masks"], inputs["index"])
        return (kernels.mask_predict_loss(features, weight, bias, *targets),)

    def peer(inputs: Inputs) -> tuple[Tensor, ...]:
        logits = _logits_of_all_classes(*inputs["leaves"])
        boxes = inputs["boxes"].to(logits.dtype)
        return (_torchvision_mask_loss(logits, {**inputs, "boxes": boxes}, -1, pyramid.images),)

    def least(inputs: Inputs) -> dict[str, int]:
        """Features once in each direction, and their gradient; a residual of each cell's logit in float32 between."""
        layer = sum(leaf.nbytes for leaf in inputs["leaves"])
        residual = len(inputs["boxes"]) * size * size * 4
        return {
            "forward": layer + _pixels_under_samples(inputs, size, -1) + residual,
            "backward": residual + 2 * layer,
        }

    shape = f"{pyramid.channels} channels, {size}x{size}, adaptive"
    return Case("mask_predict_loss", shape, dtype, "channels last", seed, make, ours, peer, least)


def mask_predict(dtype: torch.dtype, seed: int, workload: Workload = FULL) -> Case:
    """The last layer in inference; torchvision's way is a convolution for all classes, its sigmoid and a choice."""
    size, number = workload.mask_size, workload.pyramid.images * workload.detections

    def make(compute: torch.dtype, layout: str) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        layer = _last_layer(workload, number, dtype, compute, layout, generator)
        labels = torch.randint(0, workload.classes, (number,), generator=generator)
        return {"leaves": [], "layer": layer, "labels": labels}

    def ours(inputs: Inputs) -> tuple[Tensor, ...]:
        features, weight, bias = inputs["layer"]
        return (kernels.mask_predict(features, weight, bias, inputs["labels"]),)

    def peer(inputs: Inputs) -> tuple[Tensor, ...]:
        (probabilities,) = maskrcnn_inference(_logits_of_all_classes(*inputs["layer"]), [inputs["labels"]])
        return (probabilities[:, 0],)

    def least(inputs: Inputs) -> dict[str, int]:
        read = sum(each.nbytes for each in (*inputs["layer"], inputs["labels"]))
        return {"forward": read + number * size * size * 4}

    shape = f"{workload.pyramid.channels} channels, {size}x{size}"
    return Case("mask_predict", shape, dtype, "channels last", seed, make, ours, peer, least)


def _targets(workload: Workload, seed: int, generator: torch.Generator) -> Inputs:
    """What the loss compares with, and the class of each mask, which torchvision takes instead of the RoIs' labels."""
    boxes, index, _, masks = mask_targets(workload.pyramid, workload.mask_rois, seed=seed)
    class_of = torch.randint(0, workload.classes, (len(masks),), generator=generator)
    return {"boxes": boxes, "labels": class_of[index], "index": index, "masks": masks, "class_of": class_of}


def _last_layer(
    workload: Workload,
    number: int,
    dtype: torch.dtype,
    compute: torch.dtype,
    layout: str,
    generator: torch.Generator,
) -> list[Tensor]:
    """Features of `number` RoIs [K, C, M, M], weight [classes, C] and bias [classes]."""
    channels, size, classes = workload.pyramid.channels, workload.mask_size, workload.classes
    features, weight, bias = (
        torch.randn(shape, generator=generator).div(scale).to(dtype).to(compute)
        for shape, scale in (((number, channels, size, size), 1), ((classes, channels), channels**0.5), ((classes,), 1))
    )
    return [features.contiguous(memory_format=FORMATS[layout]), weight, bias]


def _logits_of_all_classes(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return conv2d(features, weight[:, :, None, None], bias)


def _pixels_under_samples(inputs: Inputs, size: int, ratio: int) -> int:
    """Pixels of ground truth, a byte each, that some RoI's samples lie on."""
    masks = torch.zeros(inputs["masks"][:, None].shape, requires_grad=True)
    rois = torch.cat([inputs["index"][:, None].float(), inputs["boxes"]], 1)
    (weight,) = torch.autograd.grad(torchvision.ops.roi_align(masks, rois, size, 1.0, ratio).sum(), masks)
    return int((weight != 0).sum())


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

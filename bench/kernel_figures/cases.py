"""What `python -m bench kernels` measures: operations of a training step, each with torchvision's own form of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models.detection.roi_heads import maskrcnn_loss

import kernels
from bench.cases import FULL, SCALES, Workload, gradients, levels_of, mask_targets, proposals, rpn_boxes

Inputs = dict[str, Any]
Function = Callable[[Inputs], tuple[Tensor, ...]]
FORMATS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
OPERATIONS = ("roi_align", "segmented_nms", "mask_loss")
IOU_THRESHOLD = 0.7
RATIO = 2


@dataclass(frozen=True)
class Case:
    """An operation on one input.

    Attributes:
        operation: one of `OPERATIONS`. shape: what tells it from others of the operation.
        make: inputs on the CPU, their values rounded to `dtype`, given the dtype to hold them in and the layout;
            "leaves" are those that gradients are asked for, "grad" the gradient of the result, if it is no scalar.
        ours: what is measured. peer: torchvision's way to the same result, on contiguous inputs.
        least: bytes that each direction must move at least, by its name; the directions that are measured.
        exact: whether results are selections, which must be equal. timed_peer: torchvision's usual form, if another.
    """

    operation: str
    shape: str
    dtype: torch.dtype
    layout: str
    seed: int
    make: Callable[[torch.dtype, str], Inputs] = field(repr=False)
    ours: Function = field(repr=False)
    peer: Function = field(repr=False)
    least: Callable[[Inputs], dict[str, int]] = field(repr=False)
    exact: bool = False
    timed_peer: Function | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"{self.operation} {self.shape}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def inputs(self) -> Inputs:
        """As our operation takes them."""
        return self.make(self.dtype, self.layout)

    def peer_inputs(self, dtype: torch.dtype = torch.float32) -> Inputs:
        """The same values as torchvision takes them."""
        return self.make(dtype, "contiguous")


def differentiate(outputs: tuple[Tensor, ...], inputs: Inputs, retain: bool = False) -> tuple[Tensor, ...]:
    """The gradients of the leaves; none if there are none."""
    if not inputs["leaves"]:
        return ()
    grad = inputs.get("grad")
    grads = [torch.ones_like(outputs[0]) if grad is None else grad]
    return torch.autograd.grad(outputs[:1], inputs["leaves"], grads, retain_graph=retain)


def cases(
    seeds: Sequence[int] = (4,),
    operations: Sequence[str] = OPERATIONS,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    workload: Workload = FULL,
) -> Iterator[Case]:
    """Those that the bars are about; NMS has no features and counts as float32."""
    if "roi_align" in operations:
        for size in (7, 14):
            for dtype, layout in [
                (torch.float32, "channels last"),
                (torch.bfloat16, "channels last"),
                (torch.float32, "contiguous"),
            ]:
                yield from (roi_align(size, dtype, layout, seed, workload) for seed in seeds if dtype in dtypes)
    if "segmented_nms" in operations and torch.float32 in dtypes:
        yield from (segmented_nms(seed, workload) for seed in seeds)
    if "mask_loss" in operations:
        for ratio in (RATIO, -1):
            for dtype in (torch.float32, torch.bfloat16):
                yield from (mask_loss(ratio, dtype, seed, workload) for seed in seeds if dtype in dtypes)


def roi_align(size: int, dtype: torch.dtype, layout: str, seed: int, workload: Workload = FULL) -> Case:
    """All levels of the pyramid, forward and backward."""
    pyramid = workload.pyramid

    def make(compute: torch.dtype, layout: str) -> Inputs:
        rois = proposals(pyramid, workload.rois_per_image, seed=seed)

        def held(tensor: Tensor) -> Tensor:
            return tensor.to(dtype).to(compute).contiguous(memory_format=FORMATS[layout])

        leaves = [held(feature).requires_grad_() for feature in pyramid.features()]
        grad = held(gradients(pyramid, size, len(rois)))
        return {"leaves": leaves, "rois": rois, "grad": grad}

    def least(inputs: Inputs) -> dict[str, int]:
        """Pixels under a sample are read, each once; of the gradients every pixel is written."""
        rois, levels, itemsize = inputs["rois"], levels_of(inputs["rois"]), inputs["grad"].element_size()
        touched = total = 0
        for level, (images, channels, height, width) in enumerate(pyramid.shapes()):
            plane = torch.zeros((images, 1, height, width), requires_grad=True)
            pooled = torchvision.ops.roi_align(plane, rois[levels == level], size, SCALES[level], RATIO)
            (weight,) = torch.autograd.grad(pooled.sum(), plane)
            touched += int((weight != 0).sum()) * channels * itemsize
            total += plane.numel() * channels * itemsize
        others = inputs["grad"].numel() * itemsize + rois.numel() * rois.element_size()
        return {"forward": touched + others, "backward": total + others}

    return Case(
        "roi_align",
        f"{size}x{size}",
        dtype,
        layout,
        seed,
        make,
        ours=lambda inputs: (kernels.multiscale_roi_align(inputs["leaves"], inputs["rois"], size, SCALES, RATIO),),
        peer=lambda inputs: (torchvision_pooler(inputs["leaves"], inputs["rois"], size),),
        least=least,
    )


def torchvision_pooler(features: list[Tensor], rois: Tensor, size: int) -> Tensor:
    """As torchvision's MultiScaleRoIAlign: level by level into one tensor [K, C, size, size]."""
    levels = levels_of(rois)
    rois = rois.to(features[0].dtype)
    pooled = features[0].new_zeros((rois.shape[0], features[0].shape[1], size, size))
    for level, feature in enumerate(features):
        members = torch.nonzero(levels == level)[:, 0]
        part = torchvision.ops.roi_align(feature, rois[members], (size, size), SCALES[level], RATIO)
        pooled = pooled.index_put((members,), part)
    return pooled


def segmented_nms(seed: int, workload: Workload = FULL) -> Case:
    """Segments of an RPN; torchvision's form is a call for each, and `batched_nms` where time is taken."""
    max_keep = workload.max_keep

    def make(compute: torch.dtype, layout: str) -> Inputs:
        boxes, scores = rpn_boxes(workload.segments, workload.boxes, seed)
        return {"leaves": [], "boxes": boxes, "scores": scores}

    def peer(inputs: Inputs) -> tuple[Tensor, ...]:
        boxes, scores = inputs["boxes"], inputs["scores"]
        keep = torch.full((len(boxes), max_keep), -1, dtype=torch.int64, device=boxes.device)
        for row, segment_boxes, segment_scores in zip(keep, boxes, scores, strict=True):
            kept = torchvision.ops.nms(segment_boxes, segment_scores, IOU_THRESHOLD)[:max_keep]
            row[: len(kept)] = kept
        return keep, (keep >= 0).sum(1)

    def timed_peer(inputs: Inputs) -> tuple[Tensor, ...]:
        boxes, scores = inputs["boxes"], inputs["scores"]
        segment = torch.arange(len(boxes), device=boxes.device).repeat_interleave(scores.shape[1])
        return (torchvision.ops.batched_nms(boxes.flatten(0, 1), scores.flatten(), segment, IOU_THRESHOLD),)

    def least(inputs: Inputs) -> dict[str, int]:
        read = sum(each.numel() * each.element_size() for each in (inputs["boxes"], inputs["scores"]))
        return {"forward": read + 8 * len(inputs["boxes"]) * (max_keep + 1)}

    shape = f"{workload.segments} x {workload.boxes}, top {max_keep}"
    return Case(
        "segmented_nms",
        shape,
        torch.float32,
        "contiguous",
        seed,
        make,
        ours=lambda inputs: kernels.segmented_nms(inputs["boxes"], inputs["scores"], IOU_THRESHOLD, max_keep),
        peer=peer,
        least=least,
        exact=True,
        timed_peer=timed_peer,
    )


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

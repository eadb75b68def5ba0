"""The public operations of `kernels` as problems to verify: inputs, the call, and torchvision's answer.

A new operation is a function here that makes its problem, and a line in OPERATIONS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import kernels
from bench import peer_operations as peers
from bench.cases import SCALES, proposals
from bench.scenes import Scene, largest_gap

Outputs = Tensor | tuple[Tensor, ...]
MASK_ROIS = 256  # of two images, which are those that a mask head trains on
FORMATS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Problem:
    """An operation with its arguments.

    Attributes:
        inputs: tensors by name, those in floating point rounded to the dtype that is verified; their copies in another
            precision are the truth's.
        call: of the public function, with the inputs by name. names: of its results.
        theirs: the same by torchvision and PyTorch, with contiguous inputs of at least float32.
        differentiable: inputs that have a gradient, from the first result.
        exact: whether results are selections, or values that every order of summation gives.
    """

    inputs: dict[str, Tensor]
    call: Callable[..., Outputs]
    theirs: Callable[..., Outputs]
    names: tuple[str, ...] = ("result",)
    differentiable: tuple[str, ...] = ()
    exact: bool = False


def roi_align(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    options = (scene.pooled, scene.scale, scene.sampling_ratio, scene.aligned)
    inputs = {"input": _maps(scene.features[scene.level], dtype, layout), "rois": scene.regions}
    return Problem(
        inputs,
        lambda input, rois: kernels.roi_align(input, rois, *options),
        lambda input, rois: peers.roi_align(input, rois, *options),
        differentiable=("input",),
    )


def multiscale_roi_align(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    levels = {f"P{number + 2}": _maps(level, dtype, layout) for number, level in enumerate(scene.features)}
    scales = SCALES[: len(levels)]
    options = (scene.pooled, scales, scene.sampling_ratio, scene.aligned)
    return Problem(
        {**levels, "rois": scene.regions},
        lambda rois, **levels: kernels.multiscale_roi_align(list(levels.values()), rois, *options),
        lambda rois, **levels: peers.multiscale_roi_align(list(levels.values()), rois, *options),
        differentiable=tuple(levels),
    )


def roi_pool(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    """Features have few different values: equal ones are frequent, and sums of gradients exact in any dtype."""
    options = (scene.pooled, scene.scale)
    few = (2 * scene.features[scene.level]).round()
    return Problem(
        {"input": _maps(few, dtype, layout), "rois": scene.regions},
        lambda input, rois: kernels.roi_pool(input, rois, *options),
        lambda input, rois: peers.roi_pool(input, rois, *options),
        differentiable=("input",),
        exact=True,
    )


def nms(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    boxes, scores = (each[0].to(dtype) for each in scene.segments)
    return Problem(
        {"boxes": boxes, "scores": scores},
        lambda boxes, scores: kernels.nms(boxes, scores, 0.5),
        lambda boxes, scores: peers.nms(boxes, scores, 0.5),
        ("kept",),
        exact=True,
    )


def batched_nms(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    boxes, scores = (each.flatten(0, 1).to(dtype) for each in scene.segments)
    return Problem(
        {"boxes": boxes, "scores": scores, "idxs": scene.choices(3, len(scores)) - 1},
        lambda boxes, scores, idxs: kernels.batched_nms(boxes, scores, idxs, 0.6),
        lambda boxes, scores, idxs: peers.batched_nms(boxes, scores, idxs, 0.6),
        ("kept",),
        exact=True,
    )


def segmented_nms(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    boxes, scores = (each.to(dtype) for each in scene.segments)
    counts = torch.tensor([scene.candidates, scene.candidates * 2 // 3])
    return Problem(
        {"boxes": boxes, "scores": scores, "counts": counts},
        lambda boxes, scores, counts: kernels.segmented_nms(boxes, scores, 0.7, scene.max_keep, counts),
        lambda boxes, scores, counts: peers.segmented_nms(boxes, scores, 0.7, scene.max_keep, counts),
        ("kept", "counts"),
        exact=True,
    )


def match_boxes(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    """The last image has no ground truth."""
    images, truths = scene.pyramid.images, scene.truths
    drawn = proposals(scene.pyramid, truths)[:, 1:] if truths else torch.zeros((0, 4))
    gt_boxes = drawn.reshape(images, truths, 4).clone()
    odd = scene.regions[:, 1:] if scene.boxes != "proposals" else drawn[:0]
    gt_boxes[0, : len(odd)] = odd[:truths]
    counts = torch.full((images,), truths)
    counts[-1] = truths if images == 1 else 0
    return Problem(
        {"anchors": scene.segments[0][0].to(dtype), "gt_boxes": gt_boxes.to(dtype), "gt_counts": counts},
        kernels.match_boxes,
        peers.match_boxes,
        ("index", "overlap", "forced"),
        exact=True,
    )


def mask_loss(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    targets, labels = _targets(scene)
    side, ratio = scene.mask_side, scene.sampling_ratio
    logits = 2 * scene.normal(len(labels), scene.classes, side, side, seed=5)
    logits[targets["weights"] == 0] = float("nan")
    return Problem(
        {"logits": _maps(logits, dtype, layout), "labels": labels, **targets},
        lambda **inputs: _of_parts(kernels.mask_loss, scene.losses, sampling_ratio=ratio, **inputs),
        lambda **inputs: _of_parts(peers.mask_loss, scene.losses, sampling_ratio=ratio, **inputs),
        ("losses",),
        differentiable=("logits",),
    )


def mask_predict(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    _, labels = _targets(scene)
    return Problem(
        {**_last_layer(scene, dtype, layout), "labels": labels},
        lambda features, layer, labels: kernels.mask_predict(features, *_parameters(layer), labels),
        lambda features, layer, labels: peers.class_logits(features, *_parameters(layer), labels).sigmoid(),
        ("probabilities",),
        differentiable=("features", "layer"),
    )


def mask_predict_loss(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    targets, labels = _targets(scene)
    ratio = scene.sampling_ratio

    def ours(features: Tensor, layer: Tensor, labels: Tensor, **targets: Any) -> Tensor:
        return kernels.mask_predict_loss(features, *_parameters(layer), labels, **targets, sampling_ratio=ratio)

    def theirs(features: Tensor, layer: Tensor, labels: Tensor, **targets: Any) -> Tensor:
        logits = peers.class_logits(features, *_parameters(layer), labels)[:, None]
        return peers.mask_loss(logits, torch.zeros_like(labels), **targets, sampling_ratio=ratio)

    return Problem(
        {**_last_layer(scene, dtype, layout), "labels": labels, **targets},
        lambda **inputs: _of_parts(ours, scene.losses, **inputs),
        lambda **inputs: _of_parts(theirs, scene.losses, **inputs),
        ("losses",),
        differentiable=("features", "layer"),
    )


def paste_masks(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    """Probabilities and masks by both rules; no probability is so near the threshold that rounding would decide."""
    boxes = scene.regions[:100, 1:]
    if scene.boxes == "degenerate":  # without width or height there is nothing at a pixel's centre, but for rounding
        boxes = boxes[((boxes[:, 2:] - boxes[:, :2]).abs() > 0.1).all(dim=1)]
    masks = scene.uniform(len(boxes), scene.mask_side, scene.mask_side, seed=6).to(dtype)
    image = scene.pyramid.height, scene.pyramid.width

    def both(function: Callable[..., Tensor], masks: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            function(masks, boxes, image, threshold, rule)
            for rule, chosen in thresholds.items()
            for threshold in (None, chosen)
        )

    thresholds: dict[str, float] = {}
    with kernels.use("eager" if scene.full else "reference"):
        for rule in ("torchvision", "centers"):
            thresholds[rule] = largest_gap(kernels.paste_masks(masks.double(), boxes.double(), image, None, rule))
    return Problem(
        {"masks": masks, "boxes": boxes},
        lambda masks, boxes: both(kernels.paste_masks, masks, boxes),
        lambda masks, boxes: both(peers.paste_masks, masks, boxes),
        tuple(f"{what}, rule {rule}" for rule in thresholds for what in ("probabilities", "masks")),
    )


def _maps(values: Tensor, dtype: torch.dtype, layout: str) -> Tensor:
    return values.to(dtype).contiguous(memory_format=FORMATS[layout])


def _targets(scene: Scene) -> tuple[dict[str, Tensor], Tensor]:
    """What the mask loss is told of each RoI, and labels [K]; the second RoI has no weight."""
    boxes = scene.regions[:MASK_ROIS, 1:]
    number = len(boxes)
    weights = scene.uniform(number, seed=7) + 0.5
    weights[1:2] = 0
    targets = {
        "boxes": boxes,
        "gt_masks": scene.masks,
        "gt_index": scene.choices(max(scene.truths, 1), number, seed=8),
        "weights": weights,
    }
    return targets, scene.choices(scene.classes, number, seed=9)


def _of_parts(loss: Callable[..., Tensor], number: int, weights: Tensor, **inputs: Any) -> Tensor:
    """Losses of every RoI, every second, every third and so on: a single number is too few for a rule on errors."""
    place = torch.arange(len(weights), device=weights.device)
    steps = range(1, 1 + max(1, min(number, len(weights))))
    return torch.stack([loss(weights=weights * (place % step == 0), **inputs) for step in steps])


def _last_layer(scene: Scene, dtype: torch.dtype, layout: str) -> dict[str, Tensor]:
    """Features of each RoI, and weight and bias as one tensor [classes, C + 1]: the bias is the weight of a channel
    that is 1; by itself its gradient is too few numbers for a rule on errors."""
    channels, side, number = scene.pyramid.channels, scene.mask_side, min(len(scene.regions), MASK_ROIS)
    features = scene.normal(number, channels, side, side, seed=10)
    layer = (scene.normal(scene.classes, channels + 1, seed=11) / channels**0.5).to(dtype)
    if layout == "blocks":
        in_blocks = features.view(number, channels, side // 2, 2, side // 2, 2).permute(0, 2, 4, 3, 5, 1)
        return {"features": in_blocks.contiguous().to(dtype), "layer": layer}
    return {"features": _maps(features, dtype, layout), "layer": layer}


def _parameters(layer: Tensor) -> tuple[Tensor, Tensor]:
    return layer[:, :-1].contiguous(), layer[:, -1].contiguous()


Make = Callable[[Scene, torch.dtype, str], Problem]

# What makes the problem, and the layouts it comes in.
OPERATIONS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "roi_align": (roi_align, tuple(FORMATS)),
    "multiscale_roi_align": (multiscale_roi_align, tuple(FORMATS)),
    "roi_pool": (roi_pool, tuple(FORMATS)),
    "nms": (nms, ("contiguous",)),
    "batched_nms": (batched_nms, ("contiguous",)),
    "segmented_nms": (segmented_nms, ("contiguous",)),
    "match_boxes": (match_boxes, ("contiguous",)),
    "mask_loss": (mask_loss, tuple(FORMATS)),
    "mask_predict": (mask_predict, (*FORMATS, "blocks")),
    "mask_predict_loss": (mask_predict_loss, (*FORMATS, "blocks")),
    "paste_masks": (paste_masks, ("contiguous",)),
}

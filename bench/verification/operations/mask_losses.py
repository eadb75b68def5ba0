"""Problems of the mask head: its last layer and its loss."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

import kernels
from bench.peers import operations as peers
from bench.peers.masks import rasterize_polygons as rasterized
from bench.verification.operations.masks import polygons
from bench.verification.operations.problem import Problem, maps
from bench.verification.scenes import Scene

Form = Literal["pixels", "packed", "polygons"]
POLYGONS = ("vertices", "part_offsets", "instance_offsets")
RATIO_OF_COUNTS = 3
MASK_ROIS = 256  # of two images, which are those that a mask head trains on


def mask_loss(scene: Scene, dtype: torch.dtype, layout: str, form: Form = "pixels") -> Problem:
    """Ground truth as pixels, with a bit a pixel, or as polygons."""
    inputs = _with_logits(scene, dtype, layout, *_targets(scene))
    if form == "polygons":
        del inputs["gt_masks"]
        inputs |= polygons(scene, dtype)
    ratio = scene.sampling_ratio

    def ours(**inputs: Any) -> Tensor:
        inputs["gt_masks"] = _masks(scene, form, inputs)
        return kernels.mask_loss(**inputs, sampling_ratio=ratio)

    def theirs(**inputs: Any) -> Tensor:
        inputs["gt_masks"] = _peer_masks(scene, form, inputs)
        return peers.mask_loss(**inputs, sampling_ratio=ratio)

    return Problem(
        inputs,
        lambda **inputs: _of_parts(ours, scene.losses, **inputs),
        lambda **inputs: _of_parts(theirs, scene.losses, **inputs),
        ("losses",),
        differentiable=("logits",),
    )


def mask_loss_with_counts(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    """Nine samples a cell, as half of an even number is just the limit; and RoIs have no weight where rounding would
    decide whether a cell is positive."""
    targets, labels = _targets(scene)
    _leave_out_halves(scene, targets)

    def ours(**inputs: Any) -> tuple[Tensor, Tensor]:
        loss, counts = kernels.mask_loss_with_counts(**inputs, sampling_ratio=RATIO_OF_COUNTS)
        return loss, torch.stack(counts)

    return Problem(
        _with_logits(scene, dtype, layout, targets, labels),
        lambda **inputs: _both_of_parts(ours, scene.losses, **inputs),
        lambda **inputs: _both_of_parts(_peer_loss_and_counts, scene.losses, **inputs),
        ("losses", "counts"),
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


def mask_predict_loss(scene: Scene, dtype: torch.dtype, layout: str, form: Form = "pixels") -> Problem:
    """Ground truth in the forms of `mask_loss`."""
    targets, labels = _targets(scene)
    inputs = {**_last_layer(scene, dtype, layout), "labels": labels, **targets}
    if form == "polygons":
        del inputs["gt_masks"]
        inputs |= polygons(scene, dtype)
    ratio = scene.sampling_ratio

    def ours(features: Tensor, layer: Tensor, **inputs: Any) -> Tensor:
        inputs["gt_masks"] = _masks(scene, form, inputs)
        weight, bias = _parameters(layer)
        return kernels.mask_predict_loss(features, weight, bias, **inputs, sampling_ratio=ratio)

    def theirs(features: Tensor, layer: Tensor, labels: Tensor, **inputs: Any) -> Tensor:
        inputs["gt_masks"] = _peer_masks(scene, form, inputs)
        logits = peers.class_logits(features, *_parameters(layer), labels)[:, None]
        return peers.mask_loss(logits, torch.zeros_like(labels), **inputs, sampling_ratio=ratio)

    return Problem(
        inputs,
        lambda **inputs: _of_parts(ours, scene.losses, **inputs),
        lambda **inputs: _of_parts(theirs, scene.losses, **inputs),
        ("losses",),
        differentiable=("features", "layer"),
    )


def mask_predict_loss_with_counts(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    """See `mask_loss_with_counts`; nor may rounding decide whether a logit is positive."""
    targets, labels = _targets(scene)
    _leave_out_halves(scene, targets)
    inputs = {**_last_layer(scene, dtype, layout), "labels": labels, **targets}
    exact = peers.class_logits(inputs["features"].double(), *_parameters(inputs["layer"].double()), labels)
    targets["weights"][(exact.abs() < 1e-5).any(dim=2).any(dim=1)] = 0

    def ours(features: Tensor, layer: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        weight, bias = _parameters(layer)
        loss, counts = kernels.mask_predict_loss_with_counts(
            features, weight, bias, **inputs, sampling_ratio=RATIO_OF_COUNTS
        )
        return loss, torch.stack(counts)

    def theirs(features: Tensor, layer: Tensor, labels: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        logits = peers.class_logits(features, *_parameters(layer), labels)[:, None]
        return _peer_loss_and_counts(logits=logits, labels=torch.zeros_like(labels), **inputs)

    return Problem(
        inputs,
        lambda **inputs: _both_of_parts(ours, scene.losses, **inputs),
        lambda **inputs: _both_of_parts(theirs, scene.losses, **inputs),
        ("losses", "counts"),
        differentiable=("features", "layer"),
    )


def _masks(scene: Scene, form: Form, inputs: dict[str, Any]) -> Tensor | kernels.PackedMasks | kernels.Polygons:
    """The ground truth out of the inputs, which lose the polygons."""
    if form == "polygons":
        drawn = {name: inputs.pop(name) for name in POLYGONS}
        return kernels.Polygons(**drawn, height=scene.pyramid.height, width=scene.pyramid.width)
    masks: Tensor = inputs["gt_masks"]
    return kernels.pack_masks(masks) if form == "packed" else masks


def _peer_masks(scene: Scene, form: Form, inputs: dict[str, Any]) -> Tensor:
    """The same as pixels."""
    if form == "polygons":
        drawn = {name: inputs.pop(name) for name in POLYGONS}
        return rasterized(**drawn, height=scene.pyramid.height, width=scene.pyramid.width)
    masks: Tensor = inputs["gt_masks"]
    return masks


def _leave_out_halves(scene: Scene, targets: dict[str, Tensor]) -> None:
    boxes, masks, index = targets["boxes"].double(), targets["gt_masks"], targets["gt_index"]
    exact = peers.mask_targets(boxes, masks, index, scene.mask_side, RATIO_OF_COUNTS)
    targets["weights"][((exact - 0.5).abs() < 1e-3).any(dim=2).any(dim=1)] = 0


def _peer_loss_and_counts(**inputs: Any) -> tuple[Tensor, Tensor]:
    ratio = RATIO_OF_COUNTS
    return peers.mask_loss(**inputs, sampling_ratio=ratio), peers.mask_counts(**inputs, sampling_ratio=ratio)


def _both_of_parts(both: Callable[..., tuple[Tensor, Tensor]], number: int, **inputs: Any) -> tuple[Tensor, ...]:
    """The loss and the counts of each of the parts."""
    weights = inputs.pop("weights")
    each = [both(weights=part, **inputs) for part in _parts(number, weights)]
    return tuple(torch.stack(results) for results in zip(*each, strict=True))


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


def _with_logits(
    scene: Scene, dtype: torch.dtype, layout: str, targets: dict[str, Tensor], labels: Tensor
) -> dict[str, Tensor]:
    """With the logits of all classes, NaN where there is no weight."""
    side = scene.mask_side
    logits = 2 * scene.normal(len(labels), scene.classes, side, side, seed=5)
    logits[targets["weights"] == 0] = float("nan")
    return {"logits": maps(logits, dtype, layout), "labels": labels, **targets}


def _of_parts(loss: Callable[..., Tensor], number: int, weights: Tensor, **inputs: Any) -> Tensor:
    """The loss of each of the parts."""
    return torch.stack([loss(weights=part, **inputs) for part in _parts(number, weights)])


def _parts(number: int, weights: Tensor) -> list[Tensor]:
    """Weights of every RoI, every second, every third and so on: a single loss is too few for a rule on errors."""
    place = torch.arange(len(weights), device=weights.device)
    return [weights * (place % step == 0) for step in range(1, 1 + max(1, min(number, len(weights))))]


def _last_layer(scene: Scene, dtype: torch.dtype, layout: str) -> dict[str, Tensor]:
    """Features of each RoI, and weight and bias as one tensor [classes, C + 1]: the bias is the weight of a channel
    that is 1; by itself its gradient is too few numbers for a rule on errors."""
    channels, side, number = scene.pyramid.channels, scene.mask_side, min(len(scene.regions), MASK_ROIS)
    features = scene.normal(number, channels, side, side, seed=10)
    layer = (scene.normal(scene.classes, channels + 1, seed=11) / channels**0.5).to(dtype)
    if layout == "blocks":
        in_blocks = features.view(number, channels, side // 2, 2, side // 2, 2).permute(0, 2, 4, 3, 5, 1)
        return {"features": in_blocks.contiguous().to(dtype), "layer": layer}
    return {"features": maps(features, dtype, layout), "layer": layer}


def _parameters(layer: Tensor) -> tuple[Tensor, Tensor]:
    return layer[:, :-1].contiguous(), layer[:, -1].contiguous()

"""A call of each public function for a number of boxes, RoIs or the like, in a dtype of features."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import kernels


@dataclass(frozen=True)
class Call:
    """A function of tensors, which passes them to a public function, and those tensors.

    Attributes:
        counts: which of the tensors have the number as their first size. large: which hold features, or the like.
        operations: how many of ours the function calls, forward.
    """

    function: Callable[..., Any]
    tensors: tuple[Tensor, ...]
    counts: tuple[int, ...]
    large: tuple[int, ...]
    operations: int = 1

    def differentiate(self, function: Callable[..., Any]) -> list[Tensor]:
        """The results of `function`, and the gradients of the tensors that want one."""
        result = function(*self.tensors)
        results: list[Tensor] = list(result) if isinstance(result, tuple) else [result]
        leaves = [each for each in self.tensors if each.requires_grad]
        if leaves:
            results += torch.autograd.grad(results[0].float().square().sum(), leaves)
        return results


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _boxes(number: int, seed: int = 0) -> Tensor:
    corner, size = torch.rand((2, number, 2), generator=torch.Generator().manual_seed(seed)) * 8
    return torch.cat([corner, corner + size + 1], dim=1)


def _rois(number: int) -> Tensor:
    return torch.cat([(torch.arange(number) % 2).float()[:, None], _boxes(number)], dim=1)


def _targets(number: int) -> tuple[Tensor, ...]:
    return _boxes(number), _random(2, 13, 11) > 0, torch.arange(number) % 2, _random(number).abs()


def roi_align(number: int, dtype: torch.dtype) -> Call:
    features = _random(2, 3, 8, 8).to(dtype).requires_grad_()
    return Call(lambda x, rois: kernels.roi_align(x, rois, 3, 0.5), (features, _rois(number)), (1,), (0,))


def multiscale_roi_align(number: int, dtype: torch.dtype) -> Call:
    levels = [_random(2, 3, size, size, seed=size).to(dtype).requires_grad_() for size in (8, 4)]

    def function(fine: Tensor, coarse: Tensor, rois: Tensor) -> Tensor:
        return kernels.multiscale_roi_align([fine, coarse], rois, 3, [0.5, 0.25], canonical_scale=8, canonical_level=1)

    return Call(function, (*levels, _rois(number)), (2,), (0, 1))


def roi_pool(number: int, dtype: torch.dtype) -> Call:
    features = _random(2, 3, 8, 8).to(dtype).requires_grad_()
    return Call(lambda x, rois: kernels.roi_pool(x, rois, 3, 0.5), (features, _rois(number)), (1,), (0,))


def nms(number: int, dtype: torch.dtype) -> Call:
    return Call(
        lambda boxes, scores: kernels.nms(boxes, scores, 0.3), (_boxes(number).to(dtype), _random(number)), (0, 1), ()
    )


def batched_nms(number: int, dtype: torch.dtype) -> Call:
    return Call(
        lambda boxes, scores, idxs: kernels.batched_nms(boxes, scores, idxs, 0.3),
        (_boxes(number).to(dtype), _random(number), torch.arange(number) % 2),
        (0, 1, 2),
        (),
    )


def segmented_nms(number: int, dtype: torch.dtype) -> Call:
    boxes = torch.stack([_boxes(7, seed) for seed in range(number)]).to(dtype)
    return Call(
        lambda boxes, scores, counts: kernels.segmented_nms(boxes, scores, 0.3, 4, counts),
        (boxes, _random(number, 7), torch.arange(number) % 8),
        (0, 1, 2),
        (),
    )


def mask_loss(number: int, dtype: torch.dtype) -> Call:
    logits = _random(number, 3, 4, 4).to(dtype).requires_grad_()
    return Call(kernels.mask_loss, (logits, torch.arange(number) % 3, *_targets(number)), (0, 1, 2, 4, 5), (0, 3))


def mask_loss_with_counts(number: int, dtype: torch.dtype) -> Call:
    call = mask_loss(number, dtype)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        loss, counts = kernels.mask_loss_with_counts(*tensors)
        return loss, *counts

    return replace(call, function=function)


def mask_loss_of_packed_masks(number: int, dtype: torch.dtype) -> Call:
    call = mask_loss(number, dtype)
    logits, labels, boxes, masks, *rest = call.tensors

    def function(logits: Tensor, labels: Tensor, boxes: Tensor, bits: Tensor, *rest: Tensor) -> Tensor:
        return kernels.mask_loss(logits, labels, boxes, kernels.PackedMasks(bits, 11), *rest)

    return replace(call, function=function, tensors=(logits, labels, boxes, kernels.pack_masks(masks).bits, *rest))


def mask_loss_of_polygons(number: int, dtype: torch.dtype) -> Call:
    logits, labels, boxes, _, *rest = mask_loss(number, dtype).tensors

    def function(*tensors: Tensor) -> Tensor:
        polygons = kernels.Polygons(*tensors[5:], 13, 11)
        return kernels.mask_loss(*tensors[:3], polygons, *tensors[3:5])

    polygons = (_random(6, 2).abs() * 6, torch.tensor([0, 3, 6]), torch.tensor([0, 1, 2]))
    return Call(function, (logits, labels, boxes, *rest, *polygons), (0, 1, 2, 3, 4), (0,), operations=2)


def rasterize_polygons(number: int, dtype: torch.dtype) -> Call:
    """A polygon of so many vertices, which pycocotools takes in float64."""

    def function(*tensors: Tensor) -> Tensor:
        return kernels.rasterize_polygons(kernels.Polygons(*tensors, 13, 40)).bits

    tensors = (_random(number, 2).double().abs() * 12, torch.tensor([0, number]), torch.tensor([0, 1]))
    return Call(function, tensors, (0,), (0,))


def pack_masks(number: int, dtype: torch.dtype) -> Call:
    return Call(lambda masks: kernels.pack_masks(masks).bits, (_random(number, 5, 40) > 0,), (0,), (), operations=0)


def unpack_masks(number: int, dtype: torch.dtype) -> Call:
    bits = kernels.pack_masks(_random(number, 5, 40) > 0).bits
    return Call(lambda bits: kernels.unpack_masks(kernels.PackedMasks(bits, 40)), (bits,), (0,), (), operations=0)


def _class_logits(number: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    features, weight, bias = _random(number, 5, 4, 4), _random(3, 5, seed=1), _random(3, seed=2)
    leaves = [each.to(dtype).requires_grad_() for each in (features, weight, bias)]
    return *leaves, torch.arange(number) % 3


def mask_predict(number: int, dtype: torch.dtype) -> Call:
    return Call(kernels.mask_predict, _class_logits(number, dtype), (0, 3), (0,))


def mask_predict_loss(number: int, dtype: torch.dtype) -> Call:
    tensors = (*_class_logits(number, dtype), *_targets(number))
    return Call(kernels.mask_predict_loss, tensors, (0, 3, 4, 6, 7), (0, 5))


def mask_predict_loss_with_counts(number: int, dtype: torch.dtype) -> Call:
    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        loss, counts = kernels.mask_predict_loss_with_counts(*tensors)
        return loss, *counts

    return replace(mask_predict_loss(number, dtype), function=function)


def paste_masks(number: int, dtype: torch.dtype) -> Call:
    masks = _random(number, 5, 5).sigmoid().to(dtype)
    return Call(lambda masks, boxes: kernels.paste_masks(masks, boxes, (16, 18)), (masks, _boxes(number)), (0, 1), (0,))


def mask_runs(number: int, dtype: torch.dtype) -> Call:
    masks = _random(number, 5, 5).sigmoid().to(dtype)
    return Call(lambda masks, boxes: kernels.mask_runs(masks, boxes, (16, 18)), (masks, _boxes(number)), (0, 1), (0,))


def decode_boxes(number: int, dtype: torch.dtype) -> Call:
    tensors = (_random(number, 2, 6, 4).to(dtype), _boxes(6), _random(number, 2, 6), torch.full((number, 2), 16))

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.decode_boxes(*tensors, min_size=1.0, score_threshold=0.1)

    return Call(function, (*tensors, torch.arange(number) % 7), (0, 2, 3, 4), (0,))


def decode_keypoints(number: int, dtype: torch.dtype) -> Call:
    return Call(kernels.decode_keypoints, (_random(number, 2, 4, 5).to(dtype), _boxes(number)), (0, 1), (0,))


def match_boxes(number: int, dtype: torch.dtype) -> Call:
    gt_boxes = torch.stack([_boxes(3, seed) for seed in (1, 2)])
    return Call(
        lambda anchors, gt_boxes, counts: kernels.match_boxes(anchors, gt_boxes, counts),
        (_boxes(number).to(dtype), gt_boxes, torch.tensor([3, 1])),
        (0,),
        (),
    )


PUBLIC_FUNCTIONS: dict[str, Callable[[int, torch.dtype], Call]] = {
    function.__name__: function
    for function in (
        roi_align,
        multiscale_roi_align,
        roi_pool,
        nms,
        batched_nms,
        segmented_nms,
        mask_loss,
        mask_loss_with_counts,
        mask_loss_of_packed_masks,
        mask_loss_of_polygons,
        rasterize_polygons,
        pack_masks,
        unpack_masks,
        mask_predict,
        mask_predict_loss,
        mask_predict_loss_with_counts,
        paste_masks,
        mask_runs,
        decode_boxes,
        decode_keypoints,
        match_boxes,
    )
}

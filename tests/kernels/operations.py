"""One small call of each operation of torch.library, for what is asked of all of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def _features(memory_format: torch.memory_format) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn((2, 3, size, size + 1), generator=generator).contiguous(memory_format=memory_format)
        for size in (8, 4)
    ]


def roi_align(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    features = [each.requires_grad_() for each in _features(memory_format)]
    return features, *_pooling(), implementation


def roi_align_backward(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    rois, *rest = _pooling()
    sizes = [size for each in _features(memory_format) for size in each.shape]
    grad = torch.randn((3, 3, 2, 3), generator=torch.Generator().manual_seed(1))
    return grad, rois, sizes, memory_format == torch.channels_last, *rest, implementation


def _pooling() -> tuple[Any, ...]:
    rois = torch.tensor([[0, 1.3, 2.1, 9.2, 7.4], [1, 3.0, 4.0, 30.0, 20.0], [1, 0.2, 0.3, 7.7, 30.1]])
    return rois, [0.25, 0.125], [2, 3], 2, False, 16.0, 2


def segmented_nms(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    boxes, scores = _boxes()
    counts = torch.tensor([4, 2])
    return boxes.repeat(2, 1, 1), scores.repeat(2, 1), 0.5, 3, counts, implementation


def nms(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    return *_boxes(), 0.5, implementation


def batched_nms(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    return *_boxes(), torch.tensor([1, 0, 1, 1]), 0.5, implementation


def _boxes() -> tuple[Tensor, Tensor]:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [30, 30, 40, 40], [31, 30, 40, 40]])
    return boxes, torch.tensor([0.5, 0.9, 0.7, 0.8])


def mask_loss(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 3, 4, 4), generator=generator).contiguous(memory_format=memory_format).requires_grad_()
    boxes = torch.tensor([[1.2, 2.1, 9.3, 8.8], [0.4, 0.1, 6.6, 12.9]])
    masks = torch.rand((2, 13, 11), generator=generator) > 0.5
    return (
        logits,
        torch.tensor([2, 0]),
        boxes,
        masks,
        torch.tensor([1, 0]),
        torch.tensor([1.0, 0.5]),
        -1,
        None,
        None,
        True,
        implementation,
    )


def rasterize(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    vertices = torch.tensor([[1.2, 2.1], [9.3, 0.4], [4.0, 12.9], [8, 8], [9, 9.5], [8.2, 10]])
    return vertices, torch.tensor([0, 3, 6]), torch.tensor([0, 2, 2]), 13, 40, True, implementation


def mask_loss_backward(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    residual = torch.randn((2, 4, 4), generator=torch.Generator().manual_seed(0))
    last = memory_format == torch.channels_last
    return torch.tensor(2.0), residual, torch.tensor([2, 0]), 3, torch.float32, last, implementation


def paste_masks(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    masks = torch.rand((2, 5, 5), generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[1.2, 2.1, 9.3, 8.8], [0.4, -3.1, 6.6, 12.9]])
    threshold = None if memory_format == torch.channels_last else 0.5
    return masks, boxes, 12, 14, threshold, "torchvision", implementation


def decode_boxes(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randn((2, 3, 5, 4), generator=generator)
    anchors = torch.tensor([1.0, 2, 8, 9]).expand(2, 3, 5, 4)
    scores, counts = torch.rand((2, 3, 5), generator=generator), None
    if memory_format == torch.channels_last:
        offsets, scores = (torch.stack(list(each), dim=2).transpose(0, 2).transpose(1, 2) for each in (offsets, scores))
        counts = torch.tensor([3, 5])
    sizes = torch.tensor([[30, 20], [10, 40]])
    return offsets, anchors, scores, sizes, counts, [10.0, 10.0, 5.0, 5.0], 1.0, 0.1, implementation


def decode_keypoints(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    heatmaps = torch.randn((2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[1.2, 2.1, 9.3, 8.8], [0.4, -3.1, 6.6, 12.9]])
    return heatmaps.contiguous(memory_format=memory_format), boxes, implementation


def mask_runs(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    masks, boxes, height, width, *_ = paste_masks(memory_format, implementation)
    return masks, boxes, height, width, 0.5, "torchvision", 40, implementation


def match_boxes(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [0, 20, 10, 30]])
    gt_boxes = torch.tensor([[[5.0, 0, 15, 10], [0, 20, 10, 29]], [[0, 0, 9, 10], [0, 0, 10, 10]]])
    if memory_format == torch.channels_last:
        anchors = anchors.expand(2, -1, -1)
    return anchors, gt_boxes, torch.tensor([2, 1]), True, implementation


def mask_predict(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    *arguments, labels = _class_logits(memory_format)
    return *[each.requires_grad_() for each in arguments], labels, implementation


def mask_predict_loss(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    _, labels, *targets = mask_loss(memory_format, implementation)
    features, weight, bias, _ = _class_logits(memory_format)
    return *[each.requires_grad_() for each in (features, weight, bias)], labels, *targets


def mask_predict_backward(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    grad = torch.randn((2, 4, 4), generator=torch.Generator().manual_seed(0))
    return grad, *_class_logits(memory_format), implementation


def _class_logits(memory_format: torch.memory_format) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features that come in blocks stand for channels last."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 2, 2, 2, 2, 5) if memory_format == torch.channels_last else (2, 5, 4, 4)
    features, weight = (torch.randn(size, generator=generator) for size in (shape, (3, 5)))
    return features, weight, torch.tensor([0.3, -0.2, 0.1]), torch.tensor([2, 0])


def roi_pool(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    rois, *_ = _pooling()
    return _features(memory_format)[0].requires_grad_(), rois, [2, 3], 0.25, implementation


def roi_pool_backward(memory_format: torch.memory_format, implementation: str) -> tuple[Any, ...]:
    rois, *_ = _pooling()
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn((3, 3, 2, 3), generator=generator)
    source = torch.randint(-1, 72, (3, 3, 2, 3), generator=generator).to(torch.int32)
    return grad, source, rois, [2, 3, 8, 9], memory_format == torch.channels_last, 0.25, implementation


# From a memory format of the features or logits (else one of two variants) and an implementation to the arguments.
OPERATIONS: dict[str, Callable[[torch.memory_format, str], tuple[Any, ...]]] = {
    function.__name__: function
    for function in (
        roi_align,
        roi_align_backward,
        segmented_nms,
        nms,
        batched_nms,
        mask_loss,
        mask_loss_backward,
        rasterize,
        paste_masks,
        mask_runs,
        decode_boxes,
        decode_keypoints,
        match_boxes,
        mask_predict,
        mask_predict_loss,
        mask_predict_backward,
        roi_pool,
        roi_pool_backward,
    )
}


def differentiable(name: str) -> bool:
    return any(isinstance(each, Tensor) and each.requires_grad for each in _leaves(name))


def _leaves(name: str, memory_format: torch.memory_format = torch.contiguous_format) -> list[Any]:
    return list(pytree.tree_leaves(OPERATIONS[name](memory_format, "eager")))


def gradcheck(name: str, memory_format: torch.memory_format, implementation: str) -> bool:
    """The first result's derivative, in float64, by everything that asks for a gradient, against differences."""
    leaves, structure = pytree.tree_flatten(OPERATIONS[name](memory_format, implementation))
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            leaves[place] = leaf.detach().double().requires_grad_(leaf.requires_grad)
    wanted = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]

    def first(*given: Tensor) -> Tensor:
        arguments = dict(enumerate(leaves)) | dict(zip(wanted, given, strict=True))
        operation = getattr(torch.ops.mrcnn, name).default
        result: Tensor = pytree.tree_leaves(operation(*pytree.tree_unflatten(arguments.values(), structure)))[0]
        return result

    return torch.autograd.gradcheck(first, [leaves[place] for place in wanted], fast_mode=True)

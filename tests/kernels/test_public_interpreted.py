"""The public functions with the Triton kernels, interpreted: chosen by default, differentiable, opcheck clean."""

import inspect
from importlib import import_module

import pytest
import torch
import torchvision
from error_rule import assert_error_rule
from operations import OPERATIONS, differentiable, gradcheck
from torch import Tensor
from torchvision.models.detection.roi_heads import maskrcnn_loss, paste_masks_in_image

from kernels import batched_nms, mask_loss, multiscale_roi_align, nms, paste_masks, roi_align, segmented_nms, use
from kernels.dispatch import asked_for, resolved

pytestmark = pytest.mark.interpreter


@pytest.mark.parametrize("name", OPERATIONS)
def test_opcheck(name: str) -> None:
    operation = getattr(torch.ops.mrcnn, name).default
    passed = torch.library.opcheck(operation, OPERATIONS[name](torch.channels_last, "triton"))
    assert set(passed.values()) == {"SUCCESS"}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", [name for name in OPERATIONS if differentiable(name)])
def test_gradcheck(name: str, memory_format: torch.memory_format) -> None:
    assert gradcheck(name, memory_format, "triton")


def test_triton_is_the_default_under_the_interpreter() -> None:
    assert resolved(asked_for(), torch.device("cpu")) == "triton"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_roi_align_and_its_gradient(memory_format: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((2, 5, 8, 9), generator=generator).contiguous(memory_format=memory_format)
    boxes = [torch.tensor([[1.3, 2.1, 9.2, 7.4]]), torch.tensor([[3.0, -4.0, 30.0, 20.0], [5.5, 5.5, 5.5, 5.5]])]
    grad = torch.randn((3, 5, 2, 2), generator=generator)

    def results(precision: torch.dtype) -> list[Tensor]:
        function = roi_align if precision == torch.bfloat16 else torchvision.ops.roi_align
        leaf = features.bfloat16().to(precision).requires_grad_()
        boxes_used = boxes if precision == torch.bfloat16 else [box.to(precision) for box in boxes]
        result = function(leaf, boxes_used, 2, 0.25)
        return [result.detach(), *torch.autograd.grad(result, leaf, grad.bfloat16().to(precision))]

    for ours, truth, plain in zip(results(torch.bfloat16), results(torch.float64), results(torch.float32), strict=True):
        assert ours.is_contiguous(memory_format=memory_format)
        assert_error_rule(ours, truth, plain.bfloat16(), torch.bfloat16)


def test_levels_are_those_of_the_reference() -> None:
    features = [torch.full((1, 1, 256 >> level, 256 >> level), level + 1.0) for level in range(4)]
    sides = torch.tensor([60.0, 111.99, 112, 223.99, 224, 447.99, 448, 900])
    boxes = [torch.stack([0 * sides, 0 * sides, sides, sides], dim=1)]
    pooled = multiscale_roi_align(features, boxes, 1, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 1)
    expected = torchvision.ops.poolers.LevelMapper(2, 5)(boxes)
    assert torch.equal(pooled.flatten().round().long() - 1, expected)


def test_selections() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 12, (40, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + torch.randint(1, 8, (40, 2), generator=generator)], dim=1)
    scores = torch.randint(0, 10, (40,), generator=generator) / 10
    classes = torch.randint(-1, 2, (40,), generator=generator)
    expected = torchvision.ops.nms(boxes, scores, 0.3)
    assert torch.equal(nms(boxes, scores, 0.3), expected)
    keep, counts = segmented_nms(boxes[None], scores[None], 0.3, 5)
    assert torch.equal(keep[0], expected[:5])
    assert counts.item() == 5
    with use("reference"):
        by_class = batched_nms(boxes, scores, classes, 0.3)
    assert torch.equal(batched_nms(boxes, scores, classes, 0.3), by_class)


def test_mask_loss_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn((2, 3, 5, 5), generator=generator), torch.tensor([[1.2, 2.1, 9.3, 8.8], [0, 0, 11, 13]])
    masks, labels, index = (
        torch.rand((2, 13, 11), generator=generator) > 0.5,
        torch.tensor([2, 0]),
        torch.tensor([1, 0]),
    )

    def torchvisions(precision: torch.dtype) -> list[Tensor]:
        leaf = logits.to(precision).requires_grad_()
        of_masks = torch.empty_like(labels).index_copy(0, index, labels)
        loss = maskrcnn_loss(leaf, [boxes.to(precision)], [masks.to(torch.uint8)], [of_masks], [index])
        return [loss.detach(), *torch.autograd.grad(loss, leaf)]

    leaf = logits.clone().requires_grad_()
    loss = mask_loss(leaf, labels, boxes, masks, index)
    results = [loss.detach(), *torch.autograd.grad(loss, leaf)]
    for ours, truth, plain in zip(results, torchvisions(torch.float64), torchvisions(torch.float32), strict=True):
        assert_error_rule(ours, truth, plain, torch.float32)


def test_paste_masks() -> None:
    masks = torch.rand((2, 5, 5), generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[1.2, 2.1, 9.3, 8.8], [0.4, -3.1, 6.6, 12.9]])
    truth, plain = (paste_masks_in_image(m[:, None], boxes, (12, 14))[:, 0] for m in (masks.double(), masks))
    assert_error_rule(paste_masks(masks, boxes, (12, 14), None), truth, plain, torch.float32)


def test_views_as_arguments() -> None:
    """Rows of larger tensors and transposed tensors, as models pass them."""
    rois = torch.tensor([[0, 1.3, 2.1, 9.2, 7.4, 9.0], [0, 3.0, -4.0, 30.0, 20.0, 9.0]])
    features = torch.randn((1, 6, 8, 9), generator=torch.Generator().manual_seed(0))
    some, boxes = features[:, ::2, :, 1:], rois[:, 1:5]
    logits = torch.randn((2, 2, 8, 8), generator=torch.Generator().manual_seed(0))[:, :, ::2, ::2]
    masks = (torch.rand((2, 13, 22), generator=torch.Generator().manual_seed(0)) > 0.5)[:, :, ::2]
    none = torch.zeros((2, 2), dtype=torch.int64)[:, 0]
    scores = torch.tensor([[0.5, 0.9], [0.7, 0.8]])[:, 0]

    def results(copy: bool) -> list[Tensor]:
        def given(x: Tensor) -> Tensor:
            return x.clone(memory_format=torch.contiguous_format) if copy else x

        return [
            # Features in neither of the two memory formats are taken as channels last.
            roi_align(some.contiguous(memory_format=torch.channels_last) if copy else some, given(rois[:, :5]), 2),
            nms(given(boxes), given(scores), 0.5),
            mask_loss(given(logits), given(none), given(boxes), given(masks), given(none), given(scores)),
            paste_masks(given(logits.sigmoid()[:, 1]), given(boxes), (12, 14), None),
        ]

    for viewed, copied in zip(results(copy=False), results(copy=True), strict=True):
        assert torch.equal(viewed, copied)


def test_levels_of_one_pixel() -> None:
    """Of one pixel both memory formats are the same bytes: the first level's strides say nothing about the others."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn((4, 5, 1, 1), generator=generator)[::2]
    other = torch.randn((2, 5, 6, 7), generator=generator)
    boxes = torch.tensor([[0, 0, 0, 20.0, 20], [1, 3.1, 2.2, 9, 9], [1, 0, 0, 300, 300], [0, 1, 1, 90, 280]])

    def pool(one: Tensor, other: Tensor) -> list[Tensor]:
        leaves = [each.detach().requires_grad_() for each in (one, other)]
        pooled = multiscale_roi_align(leaves, boxes.to(one.dtype), 2, [1 / 4, 1 / 8], canonical_level=2)
        return [pooled.detach(), *torch.autograd.grad(pooled.square().sum(), leaves)]

    with use("reference"):
        truth, plain = pool(one.double(), other.double()), pool(one, other)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        seen = pool(one, other.contiguous(memory_format=memory_format))
        for ours, true, rounded in zip(seen, truth, plain, strict=True):
            assert_error_rule(ours, true, rounded, torch.float32)


def test_the_rooms_hold_the_same_functions() -> None:
    for stem, functions in {
        "roi_align": ["roi_align", "roi_align_backward"],
        "nms": ["segmented_nms"],
        "mask_loss": ["mask_loss", "mask_loss_with_counts", "mask_loss_backward"],
        "rasterize": ["rasterize"],
        "paste_masks": ["paste_masks"],
        "encode_masks": ["mask_runs"],
        "decode_boxes": ["decode_boxes"],
        "decode_keypoints": ["decode_keypoints"],
        "match_boxes": ["match_boxes"],
        "mask_predict": ["mask_predict", "class_logits", "mask_predict_backward"],
        "roi_pool": ["roi_pool", "roi_pool_backward"],
    }.items():
        gpu, eager = (import_module(f"kernels.{room}.{stem}") for room in ("gpu", "eager"))
        for name in functions:
            assert inspect.signature(getattr(gpu, name)) == inspect.signature(getattr(eager, name))

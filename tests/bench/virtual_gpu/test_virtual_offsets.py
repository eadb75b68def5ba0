"""Addresses past 2^31 elements: what lies there is read and written, with memory that is mapped and never touched.

An offset in 32 bits would come out negative or near 0, where the virtual GPU finds it out of bounds or the result is
that of other pixels: everything but the places that count is zero.
"""

import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
import torchvision
from error_rule import assert_error_rule
from torch import Tensor

import kernels
from bench.virtual_gpu import Program, triton_kernels
from bench.virtual_gpu.intercept import active
from kernels.gpu import tuning

pytestmark = pytest.mark.compiled

LIMIT = 2**31


def untouched(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros whose pages are only made where something is written; all others read as one page of zeros."""
    count = torch.Size(shape).numel()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)


@contextmanager
def only_last(name: str, items: int) -> Iterator[None]:
    """While active, the kernel runs the programs of the last of so many items and no other: all would take minutes.

    Items are side by side along the first axis of the grid.
    """
    assemble, launch = triton_kernels._assembled, tuning.launch
    skipped = 0

    def shifted(ptx: str, entry: str) -> Program:
        if entry == name:
            ptx, count = re.subn(r"(mov\.u32\s+(%r\d+), %ctaid\.x;)", rf"\1 add.s32 \2, \2, {skipped};", ptx)
            assert count
        return assemble(ptx, entry)

    def shortened(kernel: Any, grid: Any, tensors: Any, **arguments: Any) -> None:
        nonlocal skipped
        if triton_kernels.plain_kernel(kernel).__name__ == name:
            if callable(grid):
                config = tuning.configuration(kernel, grid, tensors, arguments)
                grid = grid({**arguments, **config.all_kwargs()})
            programs, *others = grid
            skipped = programs // items * (items - 1)
            grid = (programs // items, *others)
        launch(kernel, grid, tensors, **arguments)

    with mock.patch.object(triton_kernels, "_assembled", shifted), mock.patch.object(tuning, "launch", shortened):
        yield


@pytest.mark.parametrize("images", [1, 3], ids=["within an image", "from image to image"])
@pytest.mark.parametrize(
    ("layout", "dtype"),
    [("channels last", torch.bfloat16), ("channels last", torch.float32), ("contiguous", torch.bfloat16)],
    ids=str,
)
def test_roi_align(layout: str, dtype: torch.dtype, images: int) -> None:
    """Features of 2^31 elements and more; a RoI in the last corner of the last image."""
    channels, side = 64, 5900 if images == 1 else 4200
    if images == 1:
        assert (channels - 1) * side**2 > LIMIT
    else:
        assert (images - 1) * channels * side**2 > LIMIT > channels * side**2
    pixels = torch.randn((channels, 8, 8), generator=torch.Generator().manual_seed(0)).to(dtype)
    if layout == "channels last":
        features = untouched(images, side, side, channels, dtype=dtype).permute(0, 3, 1, 2)
    else:
        features = untouched(images, channels, side, side, dtype=dtype)
    features[-1, :, -8:, -8:] = pixels
    corner, size = side - 8, 6.0  # samples lie at exact places, there and in the part
    rois = torch.tensor([[images - 1.0, corner + 0.75, corner + 1.25, corner + 0.75 + size, corner + 1.25 + size]])
    with kernels.use("triton"), active():
        ours = kernels.roi_align(features, rois, 3, 1.0, 2)
    part = rois - torch.tensor([images - 1.0, *[corner] * 4])
    truth, plain = (
        torchvision.ops.roi_align(pixels[None].to(compute), part.to(compute), 3, 1.0, 2)
        for compute in (torch.float64, torch.float32)
    )
    assert_error_rule(ours, truth, plain.to(dtype), dtype)


def test_mask_loss() -> None:
    """Ground truth of more than 2^31 pixels, the last mask's last corner set."""
    side, number = 16000, 10
    assert (number - 1) * side**2 > LIMIT
    masks = untouched(number, side, side, dtype=torch.uint8)
    pattern = torch.rand((40, 40), generator=torch.Generator().manual_seed(0)) > 0.5
    masks[-1, -40:, -40:] = pattern
    logits = torch.randn((1, 2, 14, 14), generator=torch.Generator().manual_seed(1))
    boxes, label = torch.tensor([[1.5, 2.25, 29.5, 30.25]]), torch.tensor([1])  # samples lie at exact places
    with kernels.use("triton"), active():
        ours = kernels.mask_loss(logits, label, boxes + (side - 40), masks, torch.tensor([number - 1]))
    with kernels.use("reference"):
        truth, plain = (
            kernels.mask_loss(logits.to(dtype), label, boxes.to(dtype), pattern[None], torch.tensor([0]))
            for dtype in (torch.float64, torch.float32)
        )
    assert_error_rule(ours, truth, plain, torch.float32)


def test_paste_masks() -> None:
    """More than 2^31 pixels in all images together; 1 of 2,000 is pasted."""
    number, size = 2000, (1024, 1100)
    assert (number - 1) * size[0] * size[1] > LIMIT
    masks, boxes = torch.zeros(number, 14, 14), torch.zeros(number, 4)
    masks[-1] = torch.rand((14, 14), generator=torch.Generator().manual_seed(0))
    boxes[-1] = torch.tensor([900.3, 880.2, 1090.8, 1020.9])
    # Poison would touch all of the result.
    with kernels.use("triton"), active(pattern=None), only_last("_paste_kernel", number):
        ours = kernels.paste_masks(masks, boxes, size)
    (wanted,) = kernels.paste_masks(masks[-1:], boxes[-1:], size)
    assert wanted.any()
    assert ours[-1].equal(wanted)


def test_segmented_nms() -> None:
    """More than 2^31 words of overlaps; only the last segment has boxes."""
    segments, number, count = 129, 32768, 150
    assert (segments - 1) * number * (number // 64) >= LIMIT
    try:
        torch.empty(segments * number * (number // 64), dtype=torch.int64)  # what the launcher will ask for
    except RuntimeError:
        pytest.skip("needs 17 GB of address space, though not of memory")
    generator = torch.Generator().manual_seed(0)
    boxes, scores = torch.zeros(segments, number, 4), torch.zeros(segments, number)
    corner = torch.randint(0, 20, (count, 2), generator=generator).float()
    boxes[-1, :count] = torch.cat([corner, corner + torch.randint(1, 10, (count, 2), generator=generator)], dim=1)
    scores[-1, :count] = torch.randint(0, 20, (count,), generator=generator) / 20
    counts = torch.tensor([0] * (segments - 1) + [count])
    with kernels.use("triton"), active(pattern=None), only_last("_mask_kernel", segments):
        keep, kept = kernels.segmented_nms(boxes, scores, 0.3, 200, counts)
    wanted = torchvision.ops.nms(boxes[-1, :count], scores[-1, :count], 0.3)
    assert kept.tolist() == [0] * (segments - 1) + [len(wanted)]
    assert keep[-1, : len(wanted)].equal(wanted)


def test_roi_pool() -> None:
    """A map of more than 2^31 elements; a RoI in its last corner."""
    channels, side = 64, 5900
    assert (channels - 1) * side**2 > LIMIT
    pixels = torch.randn((channels, 8, 8), generator=torch.Generator().manual_seed(0))
    feature = untouched(1, side, side, channels, dtype=torch.float32).permute(0, 3, 1, 2)
    feature[0, :, -8:, -8:] = pixels
    corner = side - 8
    rois = torch.tensor([[0.0, corner + 1, corner + 2, corner + 6, corner + 7]])
    with kernels.use("triton"), active():
        ours = kernels.roi_pool(feature, rois, 3, 1.0)
    part = rois - torch.tensor([0.0, *[corner] * 4])
    assert ours.equal(torchvision.ops.roi_pool(pixels[None], part, 3, 1.0))


def test_mask_predict() -> None:
    """Features of more than 2^31 elements, and their gradient; all but the last RoI's are zero."""
    number, channels, classes, size = 43_000, 64, 3, 28
    assert (number - 1) * channels * size * size > LIMIT
    features = untouched(number, size, size, channels, dtype=torch.bfloat16).permute(0, 3, 1, 2)
    generator = torch.Generator().manual_seed(0)
    features[-1] = torch.randn((channels, size, size), generator=generator)
    weight, bias = torch.randn((classes, channels), generator=generator), torch.randn(classes, generator=generator)
    weight, bias = weight.bfloat16(), bias.bfloat16()
    labels = torch.full((number,), classes)  # no class: what is not run adds nothing
    labels[-1] = 1
    grad = untouched(number, size, size, dtype=torch.float32)
    grad[-1] = torch.randn((size, size), generator=generator)
    features.requires_grad_()
    with kernels.use("triton"), active(pattern=None):
        with only_last("_logits_kernel", number):
            ours = kernels.mask_predict(features, weight, bias, labels)
        with only_last("_class_gradient_kernel", number):
            (gradient,) = torch.autograd.grad(ours, features, grad)
    last = features.detach()[-1:]
    exact, plain = [], []
    for results, dtype in ((exact, torch.float64), (plain, torch.float32)):
        leaf = last.to(dtype).contiguous().requires_grad_()
        logits = torch.nn.functional.conv2d(leaf, weight[1:2, :, None, None].to(dtype), bias[1:2].to(dtype))
        masks = logits.sigmoid()[:, 0]
        results += [masks.detach(), *torch.autograd.grad(masks, leaf, grad[-1:].to(dtype))]
    assert_error_rule(ours[-1:].detach(), exact[0], plain[0], ours.dtype)
    assert_error_rule(gradient[-1:], exact[1], plain[1].bfloat16(), torch.bfloat16)


def test_decode_keypoints() -> None:
    """Heatmaps of more than 2^31 pixels; only the last box has any."""
    number, keypoints, size = 40_500, 17, 56
    assert (number - 1) * keypoints * size * size > LIMIT
    heatmaps, boxes = untouched(number, keypoints, size, size, dtype=torch.float32), torch.zeros(number, 4)
    heatmaps[-1] = torch.randn((keypoints, size, size), generator=torch.Generator().manual_seed(0))
    boxes[-1] = torch.tensor([10.0, 20.0, 50.0, 75.0])
    with kernels.use("triton"), active(pattern=None), only_last("_keypoint_kernel", number):
        points, scores = kernels.decode_keypoints(heatmaps, boxes)
    with kernels.use("reference"):
        wanted, wanted_scores = kernels.decode_keypoints(heatmaps[-1:].double(), boxes[-1:].double())
        plain = kernels.decode_keypoints(heatmaps[-1:], boxes[-1:])[1]
    assert_error_rule(points[-1:], wanted, wanted.float(), torch.float32)
    assert_error_rule(scores[-1:], wanted_scores, plain, torch.float32)

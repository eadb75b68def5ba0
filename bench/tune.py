"""`python -m bench tune`: configurations measured on this GPU for the shapes of Mask R-CNN, as a table that can ship.

A table in `kernels/gpu/tuned/` comes with the package: there, whoever has the same device and version of Triton starts
without measuring. Every kernel is measured anew, whatever has been chosen before.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import kernels
from bench.cases import SCALES, Pyramid, proposals, rpn_boxes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMATS = (torch.channels_last, torch.contiguous_format)
CLASSES, MASK_SIZE, KEYPOINTS = 80, 28, 17


@dataclass(frozen=True)
class Case:
    """Something to run, with every kernel in it."""

    name: str
    run: Callable[[], None]


@dataclass(frozen=True)
class Row:
    """A choice: what was chosen for which key, and median times in ms."""

    kernel: str
    key: str
    config: str
    default: float
    fastest: float


def cases(device: torch.device, pyramid: Pyramid, rois_per_image: Sequence[int], mask_rois: int) -> Iterator[Case]:
    """Every kernel in each dtype and memory format that it knows.

    Args:
        device: where inputs are made.
        pyramid: of the features.
        rois_per_image: numbers that are pooled.
        mask_rois: how many an image have a mask.
    """
    for dtype in DTYPES:
        for layout in FORMATS:
            for number, size in product(rois_per_image, (7, 14)):
                name = f"RoIs, {number} an image, {size} x {size}, {dtype}, {layout}"
                yield Case(name, partial(_pool, device, pyramid, number, size, dtype, layout))
            yield Case(f"masks, {dtype}, {layout}", partial(_masks, device, pyramid, mask_rois, dtype, layout))
        yield Case(f"masks in blocks, {dtype}", partial(_masks, device, pyramid, mask_rois, dtype, None))
        yield Case(f"keypoints, {dtype}", partial(_keypoints, device, pyramid, mask_rois, dtype))
        yield Case(f"boxes out of offsets, {dtype}", partial(_offsets, device, pyramid, dtype))
    yield Case("boxes", partial(_boxes, device, pyramid))


def _pool(
    device: torch.device,
    pyramid: Pyramid,
    number: int,
    size: int,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> None:
    levels = [
        torch.randn(shape, dtype=dtype, device=device).contiguous(memory_format=layout).requires_grad_()
        for shape in pyramid.shapes()
    ]
    rois = proposals(pyramid, number).to(device)
    pooled = kernels.multiscale_roi_align(levels, rois, size, SCALES, 2)
    pooled.backward(torch.ones_like(pooled))
    if size == 7:
        pooled = kernels.roi_pool(levels[2], rois, size, SCALES[2])
        pooled.backward(torch.ones_like(pooled))


def _masks(
    device: torch.device, pyramid: Pyramid, number: int, dtype: torch.dtype, layout: torch.memory_format | None
) -> None:
    """The mask branch's loss in both forms, its prediction, pasting and encoding; without a layout features come in
    blocks.
    """
    boxes = proposals(pyramid, number)[:, 1:].to(device)
    labels = torch.randint(CLASSES, (len(boxes),), device=device)
    masks = torch.ones((pyramid.images * 15, pyramid.height, pyramid.width), dtype=torch.uint8, device=device)
    index = labels % len(masks)
    targets = (labels, boxes, masks, index)
    polygons = _polygons(device, pyramid)
    forms: list[Tensor | kernels.PackedMasks | kernels.Polygons] = [masks, kernels.pack_masks(masks), polygons]

    def leaf(*shape: int) -> Tensor:
        tensor = torch.randn(shape, dtype=dtype, device=device)
        return (tensor.contiguous(memory_format=layout) if layout and tensor.ndim == 4 else tensor).requires_grad_()

    weight, bias = leaf(CLASSES, pyramid.channels), leaf(CLASSES)
    if layout is None:
        features = leaf(len(boxes), MASK_SIZE // 2, MASK_SIZE // 2, 2, 2, pyramid.channels)
    else:
        features = leaf(len(boxes), pyramid.channels, MASK_SIZE, MASK_SIZE)
        logits = leaf(len(boxes), CLASSES, MASK_SIZE, MASK_SIZE)
        for ratio, form in product((2, -1), forms):
            _differentiate(kernels.mask_loss(logits, labels, boxes, form, index, sampling_ratio=ratio), [logits])
            kernels.mask_loss_with_counts(logits, labels, boxes, form, index, sampling_ratio=ratio)
    _differentiate(kernels.mask_predict_loss(features, weight, bias, *targets), [features, weight, bias])
    with torch.no_grad():
        probabilities = kernels.mask_predict(features, weight, bias, labels)[:100]
        image = (pyramid.height, pyramid.width)
        for threshold in (0.5, None):
            kernels.paste_masks(probabilities, boxes[:100], image, threshold)
            kernels.paste_masks(probabilities, boxes[:100], image, threshold, "centers")
        kernels.mask_runs(probabilities, boxes[:100], image)
        kernels.mask_runs(probabilities, boxes[:100], image, rule="centers")
        kernels.rasterize_polygons(polygons)


def _polygons(device: torch.device, pyramid: Pyramid) -> kernels.Polygons:
    """15 objects an image, each with an outline of 60 corners."""
    boxes = proposals(pyramid, 15)[:, 1:].double()
    angle = torch.linspace(0, 2 * torch.pi, 61, dtype=torch.float64)[:60]
    circle = torch.stack([angle.cos(), angle.sin()], dim=1) / 2
    vertices = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2 + circle * (boxes[:, None, 2:] - boxes[:, None, :2])
    instances = torch.arange(len(boxes) + 1, device=device)
    return kernels.Polygons(
        vertices.flatten(0, 1).to(device), instances * len(circle), instances, pyramid.height, pyramid.width
    )


def _keypoints(device: torch.device, pyramid: Pyramid, number: int, dtype: torch.dtype) -> None:
    boxes = proposals(pyramid, number)[:, 1:].to(device)
    heatmaps = torch.randn((len(boxes), KEYPOINTS, 56, 56), dtype=dtype, device=device)
    kernels.decode_keypoints(heatmaps, boxes)


def _offsets(device: torch.device, pyramid: Pyramid, dtype: torch.dtype) -> None:
    """The RPN's in training and inference, and those of each class, whose scores a softmax has made float32."""
    images = pyramid.images
    sizes = torch.tensor([[pyramid.height, pyramid.width]] * images, device=device)
    for number in (1_000, 2_000):
        anchors = rpn_boxes(5, number)[0].to(device)
        offsets = torch.randn((images, 5, number, 4), dtype=dtype, device=device)
        kernels.decode_boxes(offsets, anchors, offsets[..., 0], sizes)
    proposed = rpn_boxes(images, 1_000)[0][:, None].to(device)
    offsets = torch.randn((images, 1_000, CLASSES, 4), dtype=dtype, device=device).transpose(1, 2)
    counts = torch.full((images,), 1_000, device=device)
    kernels.decode_boxes(offsets, proposed, offsets[..., 0].float().sigmoid(), sizes, counts, (10.0, 10.0, 5.0, 5.0))


def _boxes(device: torch.device, pyramid: Pyramid) -> None:
    """The RPN's selection in training and inference, that of each class, and the matching of anchors and proposals."""
    levels = 5 * pyramid.images
    for segments, number, keep in ((levels, 2_000, 1_000), (levels, 1_000, 1_000), (CLASSES, 128, 100)):
        boxes, scores = (each.to(device) for each in rpn_boxes(segments, number))
        kernels.segmented_nms(boxes, scores, 0.7, keep)
    anchors = sum(height * width * 3 for *_, height, width in pyramid.shapes())
    gt_boxes = proposals(pyramid, 32)[:, 1:].view(pyramid.images, 32, 4).to(device)
    counts = torch.full((pyramid.images,), 15, device=device)
    for number, with_forced in product((anchors, 2_000), (True, False)):
        boxes = rpn_boxes(1, number)[0][0].to(device)
        kernels.match_boxes(boxes, gt_boxes, counts, with_forced)
        kernels.match_boxes(boxes.expand(pyramid.images, -1, -1), gt_boxes, counts, with_forced)


def _differentiate(loss: Tensor, leaves: Sequence[Tensor]) -> None:
    torch.autograd.grad(loss, leaves)


@contextmanager
def measured(path: Path) -> Iterator[list[Row]]:
    """While active every launch that has a choice is measured, once for each key, and the choice added to a table."""
    from triton.runtime.autotuner import Autotuner

    from kernels.gpu import choices, tuning

    rows: list[Row] = []
    chosen: dict[tuple[str, str], dict[str, Any]] = {}

    def launch(kernel: Any, grid: Any, tensors: Sequence[Any], **arguments: Any) -> None:
        if isinstance(kernel, Autotuner):
            name, key = choices.name_of(kernel), choices.text_of(kernel, tuning.key_of(kernel, tensors, arguments))
            if (name, key) not in chosen:
                fitting = tuning.pruned_configs(kernel, tensors, arguments)
                config = fitting[0]
                if len(fitting) > 1:
                    times = tuning.measure(kernel, grid, tensors, arguments, fitting)
                    config = min(fitting, key=lambda config: times[config])
                    choices.add(path, {name: {key: config.all_kwargs()}})
                    rows.append(Row(name.split()[0], key, str(config), times[fitting[0]], times[config]))
                chosen[name, key] = config.all_kwargs()
            arguments |= chosen[name, key]
            kernel = kernel.fn
        kernel[grid](*tensors, **arguments)

    with mock.patch.object(tuning, "launch", launch):
        yield rows


def main(arguments: list[str]) -> int:
    """Measures and writes; exit code 2 without a GPU."""
    parser = argparse.ArgumentParser("python -m bench tune", description="measures every kernel's configurations")
    parser.add_argument("--folder", type=Path, default=Path("runs/tuning"), help="where the table goes (runs/tuning)")
    options = parser.parse_args(arguments)
    console = Console()
    if not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        console.print("there is no GPU here, and only a GPU can say which configuration is the fastest")
        return 2
    from kernels.gpu import choices

    path = options.folder / choices.file_name()
    device = torch.device("cuda")
    with measured(path) as rows, kernels.use("triton"):
        for images in (1, 2):
            for case in track(list(cases(device, Pyramid(images), (512, 1_000, 100), 128)), console=console):
                console.print(case.name)
                case.run()
    for row in rows:
        times = f"{row.fastest:.4f} ms, by the default {row.default:.4f} ms"
        console.print(f"{row.kernel} {row.key}: {times}: {row.config}", soft_wrap=True, highlight=False)
    console.print(f"{path}: {len(rows)} choices; in kernels/gpu/tuned/ they come with the package")
    return 0

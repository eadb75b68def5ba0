"""What only values tell is looked at on a CPU, and on a GPU when asked for."""

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels
from kernels import dispatch, use
from kernels.dispatch import values_may_be_read

BOXES = torch.tensor([[1.0, 1, 6, 6], [2, 2, 7, 7]])
MASKS = torch.ones(2, 9, 9, dtype=torch.bool)


def pooled(function: Callable[..., Tensor], image: float) -> Tensor:
    rois = torch.cat([torch.tensor([[0.0], [image]]), BOXES], dim=1)
    return function(torch.ones(2, 3, 8, 8), rois, 2)


def multiscale(image: float) -> Tensor:
    def function(features: Tensor, rois: Tensor, size: int) -> Tensor:
        return kernels.multiscale_roi_align([features, features[:, :, :4, :4]], rois, size, [0.5, 0.25])

    return pooled(function, image)


def index(last: int) -> Tensor:
    return torch.tensor([1, last])


def weighted(weight: float) -> Tensor:
    return torch.tensor([1.0, weight])


def pixels(value: int) -> Tensor:
    masks = MASKS.to(torch.uint8)
    masks[1, 8, 8] = value
    return masks


def decoded(counts: list[int], image_sizes: list[float]) -> Tensor:
    offsets, sizes = torch.zeros(2, 5, 4), torch.tensor([[9.0, 9], image_sizes])
    return kernels.decode_boxes(offsets, torch.ones(5, 4), offsets[..., 0], sizes, torch.tensor(counts))[1]


def drawn(x: float) -> Tensor:
    return kernels.rasterize_polygons(kernels.polygons_from_coco([[[1.0, 1, 5, 1, x, 5]]], 9, 9)).bits


NAN, INF = float("nan"), float("inf")
LOGITS, WEIGHT, BIAS = torch.zeros(2, 3, 4, 4), torch.ones(3, 3), torch.zeros(3)
# For each an argument that only values tell to be wrong: a good one, bad ones, its name in the message.
CASES: dict[str, tuple[Callable[[Any], Any], Any, tuple[Any, ...], str]] = {
    "roi_align": (lambda image: pooled(kernels.roi_align, image), 1, (2, -1, -0.5), "boxes"),
    "multiscale_roi_align": (multiscale, 1, (2, -1, -0.5), "boxes"),
    "roi_pool": (lambda image: pooled(kernels.roi_pool, image), 1, (2, -1, -0.5), "boxes"),
    "mask_loss, labels": (
        lambda label: kernels.mask_loss(LOGITS, index(label), BOXES, MASKS, index(0)),
        2,
        (3, -1),
        "labels",
    ),
    "mask_loss, gt_index": (
        lambda mask: kernels.mask_loss(LOGITS, index(0), BOXES, MASKS, index(mask)),
        1,
        (2, -1),
        "gt_index",
    ),
    "mask_predict": (lambda label: kernels.mask_predict(LOGITS, WEIGHT, BIAS, index(label)), 2, (3, -1), "labels"),
    "mask_predict_loss, labels": (
        lambda label: kernels.mask_predict_loss(LOGITS, WEIGHT, BIAS, index(label), BOXES, MASKS, index(0)),
        2,
        (3, -1),
        "labels",
    ),
    "mask_predict_loss, gt_index": (
        lambda mask: kernels.mask_predict_loss(LOGITS, WEIGHT, BIAS, index(0), BOXES, MASKS, index(mask)),
        1,
        (2, -1),
        "gt_index",
    ),
    "match_boxes": (
        lambda count: kernels.match_boxes(BOXES, BOXES[None], torch.tensor([count])),
        2,
        (3, -1),
        "gt_counts",
    ),
    "mask_loss, weights": (
        lambda weight: kernels.mask_loss(LOGITS, index(0), BOXES, MASKS, index(0), weighted(weight)),
        0,
        (-1, NAN),
        "weights",
    ),
    "mask_predict_loss, weights": (
        lambda weight: kernels.mask_predict_loss(
            LOGITS, WEIGHT, BIAS, index(0), BOXES, MASKS, index(0), weighted(weight)
        ),
        0,
        (-1, NAN),
        "weights",
    ),
    "mask_loss, gt_masks": (
        lambda value: kernels.mask_loss(LOGITS, index(0), BOXES, pixels(value), index(0)),
        1,
        (2, 255),
        "gt_masks",
    ),
    "mask_predict_loss, gt_masks": (
        lambda value: kernels.mask_predict_loss(LOGITS, WEIGHT, BIAS, index(0), BOXES, pixels(value), index(0)),
        1,
        (2, 255),
        "gt_masks",
    ),
    "segmented_nms": (
        lambda count: kernels.segmented_nms(BOXES[None], torch.ones(1, 2), 0.5, 2, torch.tensor([count])),
        2,
        (3, -1),
        "counts",
    ),
    "decode_boxes, counts": (lambda count: decoded([0, count], [9, 9]), 5, (6, -3), "counts"),
    "decode_boxes, image_sizes": (lambda height: decoded([5, 5], [height, 9]), INF, (-20, NAN), "image_sizes"),
    "rasterize_polygons": (drawn, 5e3, (NAN, INF, -INF, 50e6 + 1, -1e9), "polygons.vertices"),
}
HARMLESS = list(CASES)[:8]


@pytest.mark.parametrize("implementation", ["eager", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_on_a_cpu_values_are_looked_at(name: str, implementation: dispatch.Implementation) -> None:
    function, good, bad, argument = CASES[name]
    with use(implementation):
        function(good)
        for value in bad:
            with pytest.raises(ValueError, match=rf"^{argument}.* holds .*; it must be from "):
                function(value)


ON_A_GPU: Any = SimpleNamespace(device=torch.device("cuda"), is_cuda=True)


def look_if(monkeypatch: pytest.MonkeyPatch, decides: Callable[..., bool]) -> None:
    for module in (
        "roi_align",
        "roi_pool",
        "mask_loss",
        "mask_predict",
        "match_boxes",
        "nms",
        "decode_boxes",
        "rasterize",
    ):
        monkeypatch.setattr(import_module(f"kernels.{module}"), "values_may_be_read", decides)


def no_wait(*_: Any) -> None:
    raise AssertionError("a value was asked for, which a GPU would have to be waited for")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As on a GPU with kernels that do nothing: what is asked for around them shows."""
    names: list[str] = []
    monkeypatch.setattr("kernels.gpu.tuning.launch", lambda kernel, *_, **__: names.append(str(kernel)))
    return names


@pytest.mark.compiled
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_values_are_looked_at_if_asked_for(
    name: str, asked: bool, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    function, _, bad, argument = CASES[name]
    monkeypatch.setenv("MRCNN_CHECK_VALUES", "1" if asked else "0")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    look_if(monkeypatch, lambda _, implementation: values_may_be_read(ON_A_GPU, implementation))
    with use("triton"):
        if asked:
            with pytest.raises(ValueError, match=argument):
                function(bad[0])
            assert not launched
        else:
            monkeypatch.setattr(Tensor, "__bool__", no_wait)
            function(bad[0])
            assert launched


def test_nothing_is_looked_at_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRCNN_CHECK_VALUES", "1")
    for capturing in (True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        assert values_may_be_read(ON_A_GPU, "triton") != capturing
    assert values_may_be_read(torch.zeros(1), "eager")


def test_kernels_on_a_cpu_are_treated_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in ("0", "1"):
        monkeypatch.setenv("MRCNN_CHECK_VALUES", asked)
        assert values_may_be_read(torch.zeros(1), "triton") == (asked == "1")


@pytest.mark.interpreter
@pytest.mark.parametrize("name", HARMLESS)
def test_kernels_do_no_harm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody looks: a RoI of no image, mask or class gives and gets nothing."""
    do_no_harm(name, monkeypatch)


@pytest.mark.parametrize("name", HARMLESS)
def test_eager_does_no_harm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU an index out of range would end every later call."""
    with use("eager"):
        do_no_harm(name, monkeypatch)


def do_no_harm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, good, bad, _ = CASES[name]
    look_if(monkeypatch, lambda *_: False)
    well = function(good)
    for value in bad:
        seen = function(value)
        if seen.ndim == 0:
            assert 0 < seen < well
        else:
            assert torch.equal(seen[0], well[0])
            assert not seen[1].any()

"""Every public function refuses what is no argument, by name, before anything runs; and takes numbers of numpy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kernels
from kernels import use

NAN, INF = float("nan"), float("inf")
BOXES = torch.tensor([[1.0, 1, 6, 6], [2, 2, 7, 7]])
ROIS = torch.tensor([[0.0, 1, 1, 6, 6], [1, 2, 2, 7, 7]])
SCORES, INDEX = torch.tensor([0.9, 0.8]), torch.tensor([0, 1])
FEATURES, MASKS = torch.ones(2, 3, 8, 8), torch.ones(2, 9, 9, dtype=torch.uint8)
PASTED = {
    "masks": torch.full((2, 5, 5), 0.7),
    "boxes": BOXES,
    "image_size": (9, 10),
    "threshold": 0.5,
    "rule": "torchvision",
}
OF_MASKS = {"labels": INDEX, "boxes": BOXES, "gt_masks": MASKS, "gt_index": INDEX, "weights": torch.ones(2)}
PREDICTED = {"features": torch.ones(2, 5, 4, 4), "weight": torch.ones(3, 5), "bias": torch.ones(3)}
POOLED: dict[str, Any] = {"output_size": 2, "sampling_ratio": 2, "aligned": False}
POLYGONS = kernels.polygons_from_coco([[[1.0, 1, 5, 1, 5, 5]], [[2.0, 2, 6, 2, 6, 6]]], 9, 9)

GOOD: dict[str, dict[str, Any]] = {
    "roi_align": {"input": FEATURES, "boxes": ROIS, "spatial_scale": 1.0, **POOLED},
    "multiscale_roi_align": {
        "features": [FEATURES, FEATURES[:, :, :4, :4]],
        "boxes": ROIS,
        "spatial_scales": [0.5, 0.25],
        "canonical_scale": 8,
        "canonical_level": 1,
        **POOLED,
    },
    "roi_pool": {"input": FEATURES, "boxes": ROIS, "output_size": 2, "spatial_scale": 1.0},
    "nms": {"boxes": BOXES, "scores": SCORES, "iou_threshold": 0.5},
    "batched_nms": {"boxes": BOXES, "scores": SCORES, "idxs": INDEX, "iou_threshold": 0.5},
    "segmented_nms": {
        "boxes": BOXES[None],
        "scores": SCORES[None],
        "iou_threshold": 0.5,
        "max_keep": 2,
        "counts": torch.tensor([2]),
    },
    "mask_loss": {"logits": torch.zeros(2, 3, 4, 4), **OF_MASKS, "sampling_ratio": 2},
    "mask_loss_with_counts": {"logits": torch.zeros(2, 3, 4, 4), **OF_MASKS, "sampling_ratio": 2},
    "mask_predict": {**PREDICTED, "labels": INDEX},
    "mask_predict_loss": {**PREDICTED, **OF_MASKS, "sampling_ratio": 2},
    "mask_predict_loss_with_counts": {**PREDICTED, **OF_MASKS, "sampling_ratio": 2},
    "paste_masks": PASTED,
    "encode_masks": PASTED,
    "mask_runs": {**PASTED, "capacity": 30},
    "match_boxes": {"anchors": BOXES, "gt_boxes": BOXES[None], "gt_counts": torch.tensor([2]), "with_forced": True},
    "decode_boxes": {
        "offsets": torch.zeros(2, 6, 4),
        "anchors": torch.ones(6, 4),
        "scores": torch.ones(2, 6),
        "image_sizes": torch.tensor([[20, 20], [10, 15]]),
        "counts": torch.tensor([6, 3]),
        "weights": (1.0, 1.0, 1.0, 1.0),
        "min_size": 0.0,
        "score_threshold": 0.0,
    },
    "decode_keypoints": {"heatmaps": torch.ones(2, 2, 4, 5), "boxes": BOXES},
    "rasterize_polygons": {"polygons": POLYGONS},
    "pack_masks": {"masks": MASKS},
    "unpack_masks": {"packed": kernels.pack_masks(MASKS)},
    "polygons_from_coco": {"segmentations": [[[1.0, 1, 5, 1, 5, 5]]], "height": 9, "width": 9},
}
OPTIONAL = {"counts", "weights"}
TENSORS = [
    (function, name) for function, good in GOOD.items() for name, value in good.items() if isinstance(value, Tensor)
]
# For each number: what it may not be.
NO_NUMBERS = [None, "x", 1j, torch.tensor(1), True]
NO_SIZES: list[Any] = [(5,), (5, 5, 5), (5.5, 5), (5, True), (0, 5), (5, -1), ("a", "b"), (), "55", None, 5.0]
NUMBERS: dict[str, list[Any]] = {
    "output_size": [0, -1, 2.5, True, *NO_SIZES],
    "image_size": [5, *NO_SIZES],
    "spatial_scale": [0, -1.0, NAN, INF, *NO_NUMBERS],
    "spatial_scales": [None, 0.5, [], [0.5], [0.5, 0.25, 0.125], [NAN, 0.25], [INF, INF], ["a", "b"], [0.5, 0.5]],
    "aligned": [*NO_NUMBERS[:-1], 0, 1],
    "with_forced": [*NO_NUMBERS[:-1], 0, 1],
    "sampling_ratio": [2.0, 2.5, NAN, 129, 10**10, *NO_NUMBERS],
    "canonical_scale": [0, -1.0, NAN, INF, *NO_NUMBERS],
    "canonical_level": [2.5, NAN, *NO_NUMBERS],
    "iou_threshold": [-0.1, 1.1, NAN, *NO_NUMBERS],
    "max_keep": [-1, 2.5, NAN, *NO_NUMBERS],
    "threshold": [-0.1, 1.1, NAN, *NO_NUMBERS[1:]],
    "capacity": [0, -1, 2.5, *NO_NUMBERS[1:]],
    "rule": [None, "x", 3],
    "weights": [(1, 1, 1), (0, 1, 1, 1), (-1, 1, 1, 1), (NAN, 1, 1, 1), (INF, 1, 1, 1), 1.0, "abcd", None],
    "min_size": [-1, NAN, *NO_NUMBERS],
    "score_threshold": [NAN, *NO_NUMBERS],
    "height": [-1, 2.5, *NO_NUMBERS],
    "width": [-1, 2.5, *NO_NUMBERS],
}
OTHERS = [
    (function, name)
    for function, good in GOOD.items()
    for name, value in good.items()
    if name in NUMBERS and not isinstance(value, Tensor)
]


def refused(function: str, changed: dict[str, Any], message: str) -> None:
    """The error is about the one argument that was changed, and says what it must be."""
    with use("eager"), pytest.raises(ValueError, match=rf"^(?=.* must ){message}"):
        getattr(kernels, function)(**{**GOOD[function], **changed})


@pytest.mark.parametrize("function", GOOD)
def test_good_arguments(function: str) -> None:
    """What the others change one of."""
    with use("eager"):
        getattr(kernels, function)(**GOOD[function])


def test_every_function_is_here() -> None:
    assert set(GOOD) == set(kernels.__all__) - {"MaskCounts", "PackedMasks", "Polygons", "use"}


@pytest.mark.parametrize(("function", "name"), TENSORS)
def test_no_tensor(function: str, name: str) -> None:
    value = GOOD[function][name]
    for other in (value.tolist(), value.numpy(), value.to_sparse(), "x", *([] if name in OPTIONAL else [None])):
        refused(function, {name: other}, rf"{name}(\[0\])? is ")


@pytest.mark.parametrize(("function", "name"), TENSORS)
def test_dtypes_that_none_has(function: str, name: str) -> None:
    value = GOOD[function][name]
    for dtype in (torch.complex64, torch.float8_e4m3fn, torch.uint16):
        refused(function, {name: value.to(dtype)}, rf"{name} is \(.* in {dtype}")
    if value.dtype != torch.uint8 and (function, name) != ("batched_nms", "idxs"):  # two classes
        refused(function, {name: value.bool()}, rf"{name} is \(.* in torch.bool")


@pytest.mark.parametrize(("function", "name"), TENSORS)
def test_one_dimension_too_many(function: str, name: str) -> None:
    value = GOOD[function][name]
    refused(function, {name: value[None, None]}, rf"{name} is \(1, 1, ")


@pytest.mark.parametrize(("function", "name"), OTHERS)
def test_no_such_number(function: str, name: str) -> None:
    bad = NUMBERS[name]
    for value in (
        [None, *bad] if (function, name) in (("encode_masks", "threshold"), ("mask_runs", "threshold")) else bad
    ):
        refused(function, {name: value}, rf"{name}(\[\d\])? is ")


@pytest.mark.parametrize(
    ("function", "changed", "message"),
    [
        ("multiscale_roi_align", {"features": FEATURES}, "features is "),
        ("multiscale_roi_align", {"features": None}, "features is "),
        ("multiscale_roi_align", {"features": {"0": FEATURES}}, "features is "),
        ("multiscale_roi_align", {"features": [FEATURES, None]}, r"features\[1\] is "),
        ("multiscale_roi_align", {"features": [FEATURES, FEATURES.to_sparse()]}, r"features\[1\] is "),
        ("roi_align", {"boxes": [BOXES, None]}, r"boxes\[1\] is "),
        ("roi_pool", {"boxes": [BOXES, BOXES.to(torch.float8_e4m3fn)]}, r"boxes\[1\] is "),
        ("segmented_nms", {"scores": torch.zeros(2, 2)}, r"scores is \(2, 2\) .* must be 1 x 2"),
        ("mask_loss", {"logits": torch.zeros(2, 3, 0, 0)}, r"logits is \(2, 3, 0, 0\)"),
        ("mask_loss", {"gt_masks": MASKS[:, :0, :0]}, r"gt_masks is \(2, 0, 0\) .* H and W at least 1"),
        ("mask_predict_loss", {"gt_masks": MASKS[:, :, :0]}, r"gt_masks is \(2, 9, 0\) .* H and W at least 1"),
        ("mask_loss", {"gt_masks": kernels.pack_masks(MASKS[:, :, :0])}, "gt_masks.width is 0"),
        ("mask_loss", {"gt_masks": kernels.pack_masks(MASKS[:, :0])}, r"gt_masks.bits is \(2, 0, 1\)"),
        ("mask_loss", {"gt_masks": POLYGONS._replace(height=0)}, "gt_masks.height is 0"),
        ("paste_masks", {"masks": torch.zeros(2, 0, 0)}, r"masks is \(2, 0, 0\) .* M at least 1"),
        ("mask_runs", {"masks": torch.zeros(2, 1, 0, 0)}, r"masks is \(2, 1, 0, 0\) .* M at least 1"),
        ("encode_masks", {"masks": torch.zeros(2, 0, 0)}, r"masks is \(2, 0, 0\) .* M at least 1"),
        ("encode_masks", {"image_size": (65536, 65536)}, r"image_size is \(65536, 65536\)"),
        ("unpack_masks", {"packed": MASKS}, "packed is "),
        ("unpack_masks", {"packed": kernels.PackedMasks(MASKS, 9)}, "packed.bits is .* torch.uint8"),
        ("unpack_masks", {"packed": kernels.pack_masks(MASKS)._replace(width=100)}, r"packed.bits is \(2, 9, 1\)"),
        ("unpack_masks", {"packed": kernels.pack_masks(MASKS)._replace(width=-1)}, "packed.width is -1"),
        ("unpack_masks", {"packed": kernels.pack_masks(MASKS)._replace(width=9.0)}, "packed.width is 9.0"),
        ("rasterize_polygons", {"polygons": tuple(POLYGONS)}, "polygons is "),
        ("rasterize_polygons", {"polygons": POLYGONS._replace(vertices=None)}, "polygons.vertices is "),
        ("rasterize_polygons", {"polygons": POLYGONS._replace(width=9.5)}, "polygons.width is 9.5"),
        ("polygons_from_coco", {"segmentations": [{"counts": "a", "size": [9, 9]}]}, r"segmentations\[0\] is "),
        ("polygons_from_coco", {"segmentations": [[], [1.0, 2, 3, 4]]}, r"segmentations\[1\]\[0\] is 1.0"),
        (
            "polygons_from_coco",
            {"segmentations": [[[1.0, 2], [1.0, 2, 3]]]},
            r"segmentations\[0\]\[1\] is \[1.0, 2, 3\]",
        ),
        ("polygons_from_coco", {"segmentations": [[[1.0, 2, 3], [4.0, 5, 6]]]}, r"segmentations\[0\]\[0\] is "),
        ("polygons_from_coco", {"segmentations": [["ab"]]}, r"segmentations\[0\]\[0\] is 'ab'"),
        ("polygons_from_coco", {"segmentations": [[[[1.0, 2], [3.0, 4]]]]}, r"segmentations\[0\]\[0\] is "),
        ("polygons_from_coco", {"segmentations": [[None]]}, r"segmentations\[0\]\[0\] is None"),
    ],
)
def test_wrong_arguments(function: str, changed: dict[str, Any], message: str) -> None:
    refused(function, changed, message)


@pytest.mark.parametrize(
    ("function", "changed"),
    [
        ("roi_align", {"output_size": np.int64(2), "spatial_scale": np.float32(1), "sampling_ratio": np.int32(2)}),
        ("roi_align", {"output_size": (np.int64(2), 2), "spatial_scale": 1}),
        ("segmented_nms", {"iou_threshold": np.float64(0.5), "max_keep": np.int64(2)}),
        ("segmented_nms", {"counts": torch.tensor([2], dtype=torch.uint8)}),
        ("paste_masks", {"image_size": [np.int64(9), np.int64(10)]}),
        ("mask_runs", {"image_size": torch.Size((9, 10)), "capacity": np.int16(30)}),
        ("decode_boxes", {"weights": [1, np.float32(1), 1, 1], "min_size": 0, "score_threshold": 0}),
        ("decode_boxes", {"image_sizes": torch.tensor([[20.0, 20], [10, 15]])}),
        ("polygons_from_coco", {"segmentations": [[np.array([1.0, 1, 5, 1, 5, 5])]], "height": np.int64(9)}),
        ("polygons_from_coco", {"segmentations": [((1, 1, 5, 1, 5, 5),)]}),
    ],
)
def test_other_kinds_that_do(function: str, changed: dict[str, Any]) -> None:
    call: Callable[..., Any] = getattr(kernels, function)
    with use("eager"):
        seen, same = call(**{**GOOD[function], **changed}), call(**GOOD[function])
    for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (seen, same)), strict=True):
        assert one.equal(other) if isinstance(one, Tensor) else one == other


def test_thresholds_without_an_end() -> None:
    with use("eager"):
        for threshold, kept in ((-INF, 12), (INF, 0), (2.0, 0)):
            _, scores = kernels.decode_boxes(**{**GOOD["decode_boxes"], "counts": None, "score_threshold": threshold})
            assert (scores > -INF).sum() == kept


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_counts_of_more_than_their_dtype_holds(dtype: torch.dtype) -> None:
    """300 places do not fit into 8 bits, and counts of them do."""
    boxes, scores = torch.rand((2, 300, 4)), torch.rand((2, 300))
    counts = torch.tensor([50, 60], dtype=dtype)
    with kernels.use("eager"):
        assert int(kernels.segmented_nms(boxes, scores, 0.5, 300, counts)[1].max()) <= 60
        seen = kernels.decode_boxes(boxes, boxes, scores, torch.full((2, 2), 9), counts)[1]
        assert [bool((each[count:] == -INF).all()) for each, count in zip(seen, [50, 60], strict=True)] == [True, True]
        assert bool((seen > -INF).any())
        kernels.match_boxes(boxes[0], boxes, counts)


def test_what_lists_and_numbers_may_be() -> None:
    """As users of torchvision and numpy hold them."""
    features = {"0": torch.rand((1, 2, 8, 8)), "1": torch.rand((1, 2, 4, 4))}
    boxes, scales = torch.tensor([[0, 1, 1, 20, 20.0]]), (0.25, 0.125)
    with kernels.use("eager"):
        expected = kernels.multiscale_roi_align(list(features.values()), boxes, 3, scales)
        for levels in (features.values(), tuple(features.values()), (each for each in features.values())):
            assert torch.equal(kernels.multiscale_roi_align(levels, boxes, 3, scales), expected)  # type: ignore[arg-type]
        for size in (np.array([3, 3]), torch.Size([3, 3]), np.int64(3)):
            seen = kernels.multiscale_roi_align(list(features.values()), boxes, size, np.array(scales))  # type: ignore[arg-type]
            assert torch.equal(seen, expected)
        masks, of_masks = torch.rand((1, 5, 5)), boxes[:, 1:]
        pasted = kernels.paste_masks(masks, of_masks, (30, 40))
        assert torch.equal(kernels.paste_masks(masks, of_masks, np.array([30, 40])), pasted)  # type: ignore[arg-type]
        pair = of_masks.repeat(2, 1), torch.tensor([0.5, 0.9])
        assert kernels.batched_nms(*pair, torch.tensor([True, False]), 0.5).tolist() == [1, 0]
        with pytest.raises(ValueError, match="features is of kind dict; it must be a list of one tensor or more"):
            kernels.multiscale_roi_align(features, boxes, 3, scales)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="features is empty"):
            kernels.multiscale_roi_align([], boxes, 3, scales)

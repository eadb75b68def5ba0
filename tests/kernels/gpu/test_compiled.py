"""Every configuration of every kernel compiles for real targets, with no GPU; what the defaults compile to."""

import re
from collections.abc import Iterator, Sequence

import pytest
import torch
from compilation import AMPERE, HOPPER, MI300, Launch, launches_of, resources
from triton.backends.compiler import GPUTarget

from kernels.gpu.decode_boxes import decode_boxes
from kernels.gpu.decode_keypoints import decode_keypoints
from kernels.gpu.encode_masks import mask_runs
from kernels.gpu.mask_loss import mask_loss, mask_loss_backward, mask_loss_with_counts
from kernels.gpu.mask_predict import mask_predict, mask_predict_backward
from kernels.gpu.match_boxes import match_boxes
from kernels.gpu.nms import segmented_nms
from kernels.gpu.paste_masks import paste_masks
from kernels.gpu.rasterize import rasterize
from kernels.gpu.roi_align import roi_align, roi_align_backward
from kernels.gpu.roi_pool import roi_pool, roi_pool_backward

pytestmark = pytest.mark.compiled

TARGETS = [AMPERE, HOPPER, MI300]
HALVES_AND_DOUBLE = [torch.float16, torch.bfloat16, torch.float64]


def roi_align_launches(
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
    sampling_ratio: int = 2,
    size: int = 7,
    channels: int = 256,
    rois: int = 64,
    side: int = 32,
) -> Iterator[Launch]:
    """Four levels forward and backward."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    features = [
        torch.empty((2, channels, side >> level, (side + 16) >> level), dtype=dtype).to(memory_format=memory_format)
        for level in range(4)
    ]
    boxes = torch.zeros((rois, 5), dtype=torch.promote_types(dtype, torch.float32))
    arguments = ([1 / 4, 1 / 8, 1 / 16, 1 / 32], (size, size), sampling_ratio, False, 224.0, 4)
    yield from launches_of(roi_align, features, boxes, *arguments)
    grad = torch.empty((rois, channels, size, size), dtype=dtype).to(memory_format=memory_format)
    shapes = [tuple(feature.shape) for feature in features]
    yield from launches_of(roi_align_backward, grad, boxes, shapes, channels_last, *arguments)


def other_launches(
    dtype: torch.dtype = torch.float32,
    rois: int = 16,
    sampling_ratios: Sequence[int] = (-1,),
    thresholds: Sequence[float | None] = (0.5,),
) -> Iterator[Launch]:
    compute = torch.promote_types(dtype, torch.float32)
    for number in (100, 1000):
        yield from launches_of(
            *(segmented_nms, torch.zeros((4, number, 4), dtype=dtype), torch.zeros((4, number)), 0.7, 100, None, False)
        )
    labels, boxes = torch.zeros(rois, dtype=torch.int64), torch.zeros((rois, 4))
    masks = torch.zeros((4, 64, 64), dtype=torch.uint8)
    for sampling_ratio in sampling_ratios:
        logits = torch.empty((rois, 80, 28, 28), dtype=dtype)
        targets = labels, torch.ones(rois), sampling_ratio
        yield from launches_of(mask_loss, logits, labels, boxes, masks, *targets)
        bits, extents = torch.zeros((4, 64, 2), dtype=torch.int32), torch.zeros((4, 4), dtype=torch.int32)
        yield from launches_of(mask_loss, logits, labels, boxes, bits, *targets, 50)
        yield from launches_of(mask_loss_with_counts, logits, labels, boxes, bits, *targets, 50, extents)
    for channels_last in (False, True):
        residual = torch.empty((rois, 28, 28), dtype=compute)
        yield from launches_of(
            mask_loss_backward, torch.ones((), dtype=compute), residual, labels, 80, dtype, channels_last
        )
    for rule in ("torchvision", "centers"):
        for threshold in thresholds:
            pasted = torch.empty((rois, 28, 28), dtype=dtype)
            yield from launches_of(paste_masks, pasted, boxes, (64, 64), threshold, rule)


def raster_launches(dtype: torch.dtype = torch.float32, corners: int = 12) -> Iterator[Launch]:
    vertices = torch.zeros((corners, 2), dtype=dtype)
    for whole in (True, False):
        yield from launches_of(rasterize, vertices, torch.tensor([0, 12]), torch.tensor([0, 1]), 64, 80, whole)


def match_launches(dtype: torch.dtype = torch.float32, anchors: int = 1000, gt: int = 32) -> Iterator[Launch]:
    counts = torch.zeros(2, dtype=torch.int64)
    for shape in ((anchors, 4), (2, anchors, 4)):
        boxes = torch.zeros(shape, dtype=dtype), torch.zeros((2, gt, 4), dtype=dtype)
        yield from launches_of(match_boxes, *boxes, counts, True)
    yield from launches_of(match_boxes, *boxes, counts, False)


def mask_predict_launches(dtype: torch.dtype = torch.float32, rois: int = 16) -> Iterator[Launch]:
    """Features in blocks, channels last and contiguous, forward and backward."""
    for features in (
        torch.empty((rois, 14, 14, 2, 2, 256), dtype=dtype),
        torch.empty((rois, 256, 28, 28), dtype=dtype).to(memory_format=torch.channels_last),
        torch.empty((rois, 256, 28, 28), dtype=dtype),
    ):
        parameters = torch.empty((80, 256), dtype=dtype), torch.empty(80, dtype=dtype)
        labels = torch.zeros(rois, dtype=torch.int64)
        yield from launches_of(mask_predict, features, *parameters, labels)
        grad = torch.empty((rois, 28, 28), dtype=torch.promote_types(dtype, torch.float32))
        yield from launches_of(mask_predict_backward, grad, features, *parameters, labels)


def roi_pool_launches(dtype: torch.dtype = torch.float32, rois: int = 16, side: int = 32) -> Iterator[Launch]:
    boxes = torch.zeros((rois, 5), dtype=torch.promote_types(dtype, torch.float32))
    for memory_format in (torch.channels_last, torch.contiguous_format):
        features = torch.empty((2, 256, side, side + 16), dtype=dtype).to(memory_format=memory_format)
        yield from launches_of(roi_pool, features, boxes, (7, 7), 1 / 16)
        grad = torch.empty((rois, 256, 7, 7), dtype=dtype)
        last = memory_format == torch.channels_last
        yield from launches_of(roi_pool_backward, grad, grad.int(), boxes, tuple(features.shape), last, 1 / 16)


def mask_runs_launches(dtype: torch.dtype = torch.float32, rois: int = 16, side: int = 64) -> Iterator[Launch]:
    masks, boxes = torch.empty((rois, 28, 28), dtype=dtype), torch.zeros((rois, 4))
    for rule, threshold in (("torchvision", 0.5), ("centers", 0.5), ("centers", 0.0)):
        yield from launches_of(mask_runs, masks, boxes, (side, side + 8), threshold, rule, 2 * side + 17)


def decode_boxes_launches(dtype: torch.dtype = torch.float32, number: int = 1000) -> Iterator[Launch]:
    """Segments one after another, and classes whose offsets lie together."""
    anchors, scores = torch.zeros((2, 1, number, 4)).expand(2, 3, number, 4), torch.zeros((2, 3, number))
    sizes, rest = torch.zeros((2, 2), dtype=torch.int64), ([10.0, 10.0, 5.0, 5.0], 1.0, 0.05)
    for offsets in (torch.empty((2, 3, number, 4)), torch.empty((2, number, 3, 4)).transpose(1, 2)):
        for counts in (None, torch.zeros(2, dtype=torch.int64)):
            yield from launches_of(decode_boxes, offsets.to(dtype), anchors, scores.to(dtype), sizes, counts, *rest)


def decode_keypoints_launches(dtype: torch.dtype = torch.float32, rois: int = 16) -> Iterator[Launch]:
    yield from launches_of(decode_keypoints, torch.empty((rois, 17, 56, 56), dtype=dtype), torch.zeros((rois, 4)))


def every_launch() -> list[Launch]:
    return [
        *roi_align_launches(channels_last=True),
        *roi_align_launches(channels_last=False),
        next(roi_align_launches(size=14)),  # the other form of the forward pass in float32
        *other_launches(),
        *mask_runs_launches(),
        *decode_boxes_launches(),
        *decode_keypoints_launches(),
        *raster_launches(),
        *match_launches(),
        *mask_predict_launches(),
        *roi_pool_launches(),
    ]


def kernel_names() -> list[str]:
    return sorted({launch.name for launch in every_launch()})


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.arch))
@pytest.mark.parametrize("name", kernel_names())
def test_every_configuration_compiles(name: str, target: GPUTarget) -> None:
    compiled = 0
    for launch in every_launch():
        if launch.name != name:
            continue
        for config in launch.configs_on(target):
            kernel = launch.compile(config, target)
            assert kernel.asm["cubin" if target.backend == "cuda" else "hsaco"]
            compiled += 1
    assert compiled


@pytest.mark.parametrize("dtype", HALVES_AND_DOUBLE, ids=str)
def test_every_dtype_compiles(dtype: torch.dtype) -> None:
    for launch in [
        *roi_align_launches(dtype),
        *roi_align_launches(dtype, channels_last=False),
        *other_launches(dtype, sampling_ratios=(-1, 2), thresholds=(0.5, None)),
        *mask_runs_launches(dtype),
        *decode_boxes_launches(dtype),
        *decode_keypoints_launches(dtype),
        *match_launches(dtype),
        *mask_predict_launches(dtype),
        *roi_pool_launches(dtype),
    ]:
        assert launch.compile(launch.configs[0], HOPPER).asm["cubin"]


@pytest.mark.parametrize("sampling_ratio", [-1, 1, 3, 6])
def test_every_kind_of_sampling_compiles(sampling_ratio: int) -> None:
    for channels_last in (True, False):
        for launch in roi_align_launches(channels_last=channels_last, sampling_ratio=sampling_ratio, size=14):
            assert launch.compile(launch.configs[0], HOPPER).asm["cubin"]


@pytest.mark.parametrize("name", kernel_names())
def test_defaults_fit_in_registers(name: str) -> None:
    for launch in every_launch():
        if launch.name == name:
            used = resources(launch.compile(launch.configs[0], HOPPER))
            assert used["REG"] <= 128, used
            assert used["LOCAL"] == 0, used
            assert used["STACK"] == 0, used


@pytest.mark.parametrize("target", [AMPERE, HOPPER], ids=lambda target: str(target.arch))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_channels_are_read_and_written_16_bytes_at_a_time(dtype: torch.dtype, target: GPUTarget) -> None:
    launches = [*roi_align_launches(dtype), *roi_align_launches(dtype, size=14)]
    forms = {"_channels_last_kernel", *(["_neighbours_kernel"] if dtype == torch.float32 else [])}
    assert forms <= {launch.name for launch in launches}
    for launch in launches:
        if launch.name in (*forms, "gather_kernel"):
            ptx = launch.compile(launch.configs[0], target).asm["ptx"]
            # Eight sums a thread for each of eight pixels would not fit: the gather takes four channels of any width.
            width = "v2" if launch.name == "gather_kernel" and dtype == torch.bfloat16 else "v4"
            assert re.search(rf"ld\.global\.{width}\.b32", ptx)
            assert "st.global.v4.b32" in ptx
            if width == "v2":
                continue
            assert not re.search(r"st\.global\.(b8|b16|b32|v2)", ptx)


@pytest.mark.parametrize("target", [AMPERE, HOPPER], ids=lambda target: str(target.arch))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mask_features_are_read_and_written_16_bytes_at_a_time(dtype: torch.dtype, target: GPUTarget) -> None:
    for launch in mask_predict_launches(dtype):
        if launch.name in ("_logits_kernel", "_class_gradient_kernel"):
            ptx = launch.compile(launch.configs[0], target).asm["ptx"]
            assert "ld.global.v4.b32" in ptx
            assert ("st.global.v4.b32" in ptx) == (launch.name == "_class_gradient_kernel")


def test_a_box_is_read_at_once() -> None:
    for launch in match_launches():
        assert "ld.global.v4.b32" in launch.compile(launch.configs[0], HOPPER).asm["ptx"]


def test_no_atomics() -> None:
    """The gradient is a gather: its bits are the same at each run. A maximum of integers does not ask for an order."""
    for launch in every_launch():
        ptx = launch.compile(launch.configs[0], HOPPER).asm["ptx"]
        atomics = set(re.findall(r"\b(?:atom|red)\.\S+", ptx))
        joins = launch.name == "_best_kernel" and launch.arguments["WITH_FORCED"]
        assert all(re.search(r"\.max\.s(32|64)$", each) for each in atomics)
        assert bool(atomics) == joins


def test_overlaps_are_neither_fused_nor_approximate() -> None:
    """Kept sets and matches are exact only if each operation is rounded as IEEE 754 says."""
    overlaps = [launch for launch in other_launches() if launch.name in ("_mask_kernel", "_at_once_kernel")]
    assert {launch.name for launch in overlaps} == {"_mask_kernel", "_at_once_kernel"}
    for launch in [*overlaps, *match_launches()]:
        ptx = launch.compile(launch.configs[0], HOPPER).asm["ptx"]
        assert "div.rn.f32" in ptx
        assert not re.search(r"fma\.|div\.full|div\.approx", ptx)


@pytest.mark.parametrize("channels_last", [True, False])
def test_levels_and_places_of_samples_are_not_approximate(channels_last: bool) -> None:
    """Whatever RoIAlign launches: what rounding decides is the same on every GPU.

    With adaptive sampling a division bounds which samples may lie on the map, with a sample to spare.
    """
    for launch in roi_align_launches(channels_last=channels_last):
        ptx = launch.compile(launch.configs[0], HOPPER).asm["ptx"]
        assert not re.search(r"\b(div\.full|\w+\.approx)", ptx), launch.name


def test_counts_and_image_sizes_do_not_compile_anew() -> None:
    """One more box, or maps of another size, is the same kernel: the same source, constants and alignments."""

    def hashes(rois: int, side: int) -> list[str]:
        return [
            launch.compile(launch.configs[0], HOPPER).hash
            for launch in [
                *roi_align_launches(rois=rois, side=side),
                *other_launches(rois=rois),
                *mask_runs_launches(rois=rois, side=side),
                *decode_boxes_launches(number=rois),
                *decode_keypoints_launches(rois=rois),
                *raster_launches(corners=rois),
                *match_launches(anchors=rois, gt=side),
                *mask_predict_launches(rois=rois),
                *roi_pool_launches(rois=rois, side=side),
            ]
        ]

    assert hashes(64, 32) == hashes(65, 40) == hashes(33, 88)


def test_polygons_are_walked_without_fusing() -> None:
    """In float64, where a product and a sum in one rounding would put points elsewhere than pycocotools does."""
    for launch in [*raster_launches(), *raster_launches(torch.float64)]:
        ptx = launch.compile(launch.configs[0], HOPPER).asm["ptx"]
        assert ".f64" in ptx
        assert not re.search(r"fma\.rn\.f64|div\.full|div\.approx", ptx)


def test_a_changed_constant_compiles_anew() -> None:
    """The check above could fail."""
    first, second = (
        launch.compile(launch.configs[0], HOPPER).hash
        for launch in (next(roi_align_launches(size=7)), next(roi_align_launches(size=6)))
    )
    assert first != second

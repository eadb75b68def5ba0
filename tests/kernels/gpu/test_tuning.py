"""Buckets, pruning and pinning: plain Python, in either kind of process."""

import pytest
import torch
import triton
from triton.runtime.autotuner import Autotuner

from kernels.gpu import (
    decode_boxes,
    decode_keypoints,
    encode_masks,
    mask_loss,
    mask_predict,
    match_boxes,
    nms,
    nms_at_once,
    paste_masks,
    rasterize,
    roi_align,
    roi_gather,
    roi_neighbours,
    roi_pool,
    tuning,
)

KERNELS = [
    roi_align._channels_last_kernel,
    roi_align._contiguous_kernel,
    roi_neighbours._neighbours_kernel,
    roi_gather.gather_kernel,
    nms._mask_kernel,
    nms._reduce_kernel,
    nms_at_once._at_once_kernel,
    mask_loss._loss_kernel,
    mask_loss._gradient_kernel,
    paste_masks._paste_kernel,
    encode_masks._edges_kernel,
    decode_boxes._decode_kernel,
    decode_keypoints._keypoint_kernel,
    rasterize._raster_kernel,
    match_boxes._best_kernel,
    match_boxes._forced_kernel,
    mask_predict._logits_kernel,
    mask_predict._class_gradient_kernel,
    mask_predict._class_sum_kernel,
    roi_pool._pool_kernel,
    roi_pool._source_kernel,
]


@pytest.mark.parametrize(("count", "expected"), [(0, 16), (1, 16), (16, 16), (17, 32), (1000, 1024), (1025, 2048)])
def test_bucket(count: int, expected: int) -> None:
    assert tuning.bucket(count) == expected


@pytest.mark.parametrize(
    ("dtype", "rows", "block"),
    [
        (torch.float64, 8, 32),
        (torch.float32, 8, 32),
        (torch.float32, 16, 32),
        (torch.bfloat16, 8, 64),
        (torch.bfloat16, 16, 64),
    ],
    ids=str,
)
def test_rows_of_channels_are_lines_read_16_bytes_a_thread(dtype: torch.dtype, rows: int, block: int) -> None:
    arguments = {"out_ptr": torch.empty(1, dtype=dtype), "CHANNELS": 256, "BLOCK_H": rows, "RATIO": 2}
    left = tuning.pruned_configs(roi_align._channels_last_kernel, (), arguments)
    assert left[0].kwargs["BLOCK_C"] == block
    assert len(left) > 1
    for config in left:
        row = config.kwargs["BLOCK_C"] * dtype.itemsize
        assert 128 <= row <= 256
        assert 16 <= row * rows / (32 * config.num_warps) <= 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adaptive_sampling_leaves_few_values_to_a_thread(dtype: torch.dtype) -> None:
    arguments = {"out_ptr": torch.empty(1, dtype=dtype), "CHANNELS": 256, "BLOCK_H": 8, "RATIO": 0}
    left = tuning.pruned_configs(roi_align._channels_last_kernel, (), arguments)
    assert len(left) > 1
    assert {8 * c.kwargs["BLOCK_C"] * dtype.itemsize / (32 * c.num_warps) for c in left} == {16}
    left = tuning.pruned_configs(roi_align._contiguous_kernel, (), arguments)
    assert len(left) > 1
    assert {c.kwargs["BLOCK_C"] / c.num_warps for c in left} == {4}


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [8, 32, 256])
def test_neighbours_hold_16_bytes_a_thread(channels: int, rows: int) -> None:
    arguments = {"out_ptr": torch.empty(1), "CHANNELS": channels, "BLOCK_H": rows}
    left = tuning.pruned_configs(roi_neighbours._neighbours_kernel, (), arguments)
    held = [rows * c.kwargs["ROIS"] * c.kwargs["BLOCK_C"] * 4 / (32 * c.num_warps) for c in left]
    if channels >= 32:
        assert set(held) == {8 if rows == 1 else 16}
        assert len(left) >= (3 if (rows, channels) == (8, 256) else 2)
    else:  # the narrowest block, wider than the channels
        assert [config.kwargs["BLOCK_C"] for config in left] == [32]


@pytest.mark.parametrize(
    ("dtype", "rois", "size", "ratio", "expected"),
    [
        (torch.float32, 1000, (7, 7), 2, True),
        (torch.float32, 1000, (8, 8), 4, True),
        (torch.bfloat16, 1000, (7, 7), 2, False),
        (torch.float64, 1000, (7, 7), 2, False),
        (torch.float32, 1000, (14, 14), 2, False),
        (torch.float32, 1000, (7, 17), 2, False),  # more samples than bits
        (torch.float32, 1000, (7, 7), -1, False),
        (torch.float32, 1000, (2, 2), 5, False),
        (torch.float32, 1 << 20, (7, 7), 2, False),
    ],
)
def test_where_rois_are_taken_together(
    dtype: torch.dtype, rois: int, size: tuple[int, int], ratio: int, expected: bool
) -> None:
    assert roi_neighbours.suits_neighbours(dtype, rois, size, ratio) == expected


@pytest.mark.parametrize(
    ("dtype", "channels", "expected"),
    [
        (torch.float32, 256, {(256, 1), (128, 1), (256, 2)}),
        (torch.bfloat16, 256, {(256, 1)}),
        (torch.bfloat16, 512, {(256, 1), (512, 2)}),
        (torch.float32, 64, {(64, 1)}),  # 8 bytes a thread, as there are no more
        (torch.float64, 8, {(32, 1)}),
    ],
    ids=str,
)
def test_pooling_reads_16_bytes_a_thread(dtype: torch.dtype, channels: int, expected: set[tuple[int, int]]) -> None:
    arguments = {"input_ptr": torch.empty(1, dtype=dtype), "CHANNELS": channels, "CHANNELS_LAST": True}
    left = tuning.pruned_configs(roi_pool._pool_kernel, (), arguments)
    assert {(c.kwargs["BLOCK_C"], c.num_warps) for c in left} == expected


@pytest.mark.parametrize(
    ("kernel", "pointer", "spill"),
    [
        (roi_pool._source_kernel, "grad_ptr", {"BLOCK_Y": 2, "BLOCK_X": 4, "BLOCK_C": 128, "num_warps": 1}),
        (mask_predict._class_gradient_kernel, "features_ptr", {"BLOCK_C": 8, "num_warps": 1}),
        (paste_masks._paste_kernel, "masks_ptr", {"BLOCK_H": 16, "BLOCK_W": 128, "num_warps": 8}),
        (paste_masks._paste_kernel, "masks_ptr", {"BLOCK_H": 16, "BLOCK_W": 64, "num_warps": 4}),
        (paste_masks._paste_kernel, "masks_ptr", {"BLOCK_H": 32, "BLOCK_W": 32, "num_warps": 4}),
        (encode_masks._edges_kernel, "masks_ptr", {"BLOCK_H": 8, "BLOCK_W": 64, "num_warps": 2}),
        (encode_masks._edges_kernel, "masks_ptr", {"BLOCK_H": 8, "BLOCK_W": 128, "num_warps": 4}),
    ],
)
def test_what_spills_in_float16_is_not_taken_there(kernel: Autotuner, pointer: str, spill: dict[str, int]) -> None:
    """As `python -m bench resources` has found."""

    def taken(dtype: torch.dtype, channels_last: bool) -> bool:
        arguments = {pointer: torch.empty(1, dtype=dtype), "CHANNELS": 256, "CHANNELS_LAST": channels_last, "SIZE": 28}
        left = [{**each.kwargs, "num_warps": each.num_warps} for each in tuning.pruned_configs(kernel, (), arguments)]
        assert left
        return spill in left

    assert not taken(torch.float16, channels_last=False)
    assert any(taken(torch.float32, channels_last) for channels_last in (False, True))


def test_bucket_with_another_floor() -> None:
    assert [tuning.bucket(count, 1) for count in (0, 1, 2, 3)] == [1, 1, 2, 4]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.base_fn.__name__)
@pytest.mark.parametrize("channels", [1, 3, 8, 64, 255, 4096])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_pruning_leaves_a_configuration(kernel: Autotuner, channels: int, channels_last: bool, ratio: int) -> None:
    arguments = {
        "out_ptr": torch.empty(1),
        "input_ptr": torch.empty(1),
        "features_ptr": torch.empty(1),
        "masks_ptr": torch.empty(1),
        "RATIO": ratio,
        "CHANNELS": channels,
        "CHANNELS_WRITTEN": channels,
        "CHANNELS_LAST": channels_last,
        "SIZE": 14,
        "BLOCK_H": 8,
        "height": channels,
        "gt_bucket": 4,
        "anchors_bucket": 16,
        "WORDS": 64,
        "BOXES": 64,
    }
    left = tuning.pruned_configs(kernel, (), arguments)
    assert left
    assert all(config in kernel.configs for config in left)
    block = left[0].kwargs.get("BLOCK_C", 1)
    assert block <= max(triton.next_power_of_2(channels), min(c.kwargs.get("BLOCK_C", 1) for c in kernel.configs))


@pytest.mark.parametrize(("backend", "rows", "block"), [("cuda", {1, 2}, 128), ("hip", {1}, 256)])
def test_what_a_warp_gathers(backend: str, rows: set[int], block: int) -> None:
    """Four channels a thread. On AMD two rows would spill; there is a configuration for every number of channels."""
    for channels in (3, 32, 48, 64, 256):
        arguments = {"CHANNELS": channels, "grad_ptr": torch.empty(1)}
        left = tuning.pruned_configs(roi_gather.gather_kernel, (), arguments, backend)
        assert {config.kwargs["ROWS"] for config in left} <= rows
        assert {config.kwargs["BLOCK_C"] for config in left} == {min(block, max(32, triton.next_power_of_2(channels)))}
    assert {config.kwargs["ROWS"] for config in left} == rows


@pytest.mark.parametrize("backend", ["cuda", "hip"])
@pytest.mark.parametrize("words", [32, 64, 128, 256, 512, 1024, 2048])
def test_rows_of_long_lists_fit_into_registers(words: int, backend: str) -> None:
    left = tuning.pruned_configs(nms._reduce_kernel, (), {"WORDS": words}, backend)
    lanes = 64 if backend == "hip" else 32
    assert all(2 <= c.kwargs["ROWS"] * words / (lanes * c.num_warps) <= 16 for c in left)
    assert len(left) > 1 or words > 512


@pytest.mark.parametrize(("boxes", "warps"), [(32, {1}), (64, {2, 1}), (128, {4, 2}), (256, {8, 4})])
def test_a_thread_has_one_or_two_boxes(boxes: int, warps: set[int]) -> None:
    left = tuning.pruned_configs(nms_at_once._at_once_kernel, (), {"BOXES": boxes}, "cuda")
    assert {config.num_warps for config in left} == warps
    assert left[0].num_warps == max(warps)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.base_fn.__name__)
def test_there_is_a_choice(kernel: Autotuner) -> None:
    assert len(kernel.configs) == len(set(map(str, kernel.configs))) > 1


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.base_fn.__name__)
def test_keys_name_arguments(kernel: Autotuner) -> None:
    assert set(kernel.keys) <= set(kernel.arg_names)


@pytest.mark.parametrize("size", [1, 2, 7, 28])
@pytest.mark.parametrize("channels", [1, 3, 64, 256])
@pytest.mark.parametrize("channels_last", [True, False])
def test_tiles_are_long_where_memory_is_contiguous(channels_last: bool, channels: int, size: int) -> None:
    arguments = {"CHANNELS": channels, "CHANNELS_LAST": channels_last, "SIZE": size, "features_ptr": torch.empty(1)}
    summed = mask_predict.summed_at_once(size, channels, channels_last)
    for kernel in (mask_predict._logits_kernel, mask_predict._class_gradient_kernel):
        left = [summed | config.kwargs for config in tuning.pruned_configs(kernel, (), arguments)]
        assert left
        if channels >= 64 and size >= 14:
            assert len(left) > 1
            assert all((tile["BLOCK_C"] >= tile["BLOCK"]) == channels_last for tile in left)
            assert all(tile["BLOCK_C"] <= channels and tile["BLOCK"] <= 2 * size**2 for tile in left)


@pytest.mark.parametrize(("anchors_bucket", "longest"), [(16, 32), (32, 32), (128, 128), (1 << 18, 256)])
def test_blocks_are_not_longer_than_the_anchors(anchors_bucket: int, longest: int) -> None:
    left = tuning.pruned_configs(match_boxes._best_kernel, (), {"anchors_bucket": anchors_bucket})
    assert max(config.kwargs["BLOCK"] for config in left) == longest


def test_pinned_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_has_driver", lambda: False)
    assert tuning.pinned()


def test_pinned_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_has_driver", lambda: True)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.delenv("MRCNN_PIN_CONFIG", raising=False)
    assert not tuning.pinned()
    monkeypatch.setenv("MRCNN_PIN_CONFIG", "1")
    assert tuning.pinned()


def test_a_pinned_launch_takes_the_first_configuration_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, int]] = []

    class Kernel(Autotuner):
        def __init__(self) -> None:
            self.arg_names = ["x", "CHANNELS"]
            self.configs = [triton.Config({"BLOCK_C": 64}), triton.Config({"BLOCK_C": 16}, num_warps=2)]
            self.early_config_prune = lambda configs, named, **kwargs: tuning.within_channels(configs, kwargs)
            self.fn = {(1,): lambda x, **kwargs: calls.append(kwargs)}

    monkeypatch.setattr(tuning, "pinned", lambda: True)
    tuning.launch(Kernel(), (1,), ("tensor",), CHANNELS=16)
    assert [(call["BLOCK_C"], call["num_warps"]) for call in calls] == [(16, 2)]

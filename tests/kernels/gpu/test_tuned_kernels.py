"""What every tuned kernel's key and pruning must be, whatever kernels there are: plain Python."""

import re
from itertools import product
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.runtime.autotuner import Autotuner

import kernels
from bench.compiled.launches import name_of, tuned_kernels
from kernels.gpu import nms_at_once, tuning

pytestmark = pytest.mark.compiled

KERNELS = tuned_kernels()
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# Arguments that tell how much there is of what changes from image to image.
COUNT = re.compile(r"num_.*|max_.*|.*_bucket|height|width|words|rows|columns|capacity|crowded|.*_count|.*stride.*")

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=name_of)


def parameters(kernel: Autotuner) -> dict[str, Any]:
    return {each.name: each for each in kernel.fn.params}


def chosen_arguments(kernel: Autotuner) -> set[str]:
    """Arguments that configurations give."""
    return {argument for config in kernel.configs for argument in config.kwargs}


@every_kernel
def test_counts_are_never_constants(kernel: Autotuner) -> None:
    """Nor is one specialised for its value: 1 and multiples of 16 would compile anew."""
    for argument, parameter in parameters(kernel).items():
        if COUNT.fullmatch(argument):
            assert not parameter.is_constexpr, argument
            assert parameter.do_not_specialize or "stride" in argument, argument


@every_kernel
def test_the_key_has_constants_and_buckets_of_counts(kernel: Autotuner) -> None:
    known = parameters(kernel)
    assert len(set(kernel.keys)) == len(kernel.keys)
    for argument in kernel.keys:
        assert argument in known, argument
        assert argument not in chosen_arguments(kernel)
        assert known[argument].is_constexpr or argument.endswith("_bucket"), argument
    buckets = {argument for argument in known if argument.endswith("_bucket")}
    assert buckets <= set(kernel.keys)
    assert buckets, "what a launch has most of decides what is fast"


@every_kernel
def test_constants_are_written_in_capitals(kernel: Autotuner) -> None:
    for argument, parameter in parameters(kernel).items():
        assert argument.isupper() == parameter.is_constexpr, argument


def test_a_count_as_a_constant_is_seen() -> None:
    """The checks above can fail."""

    @tuning.tuned([triton.Config({"BLOCK": 1})], ["num_rois"], lambda configs, _: list(configs))
    @triton.jit
    def fixed(rois_ptr, num_rois: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        tl.store(rois_ptr, num_rois)

    for check in (
        test_counts_are_never_constants,
        test_the_key_has_constants_and_buckets_of_counts,
        test_constants_are_written_in_capitals,
    ):
        with pytest.raises(AssertionError):
            check(fixed)


FLAGS = {"CHANNELS_LAST", "BLOCKED", "SIGMOID", "SHARED", "WITH_FORCED", "ALIGNED", "WIDE", "CENTERS", "THRESHOLD"}


def values_of(argument: str) -> st.SearchStrategy[Any]:
    if argument.endswith("_ptr"):
        return st.sampled_from(DTYPES).map(lambda dtype: torch.empty(1, dtype=dtype))
    if argument.endswith("_bucket"):
        return st.integers(0, 20).map(lambda power: 2**power)
    if argument in FLAGS:
        return st.booleans()
    return st.one_of(st.integers(1, 70), st.integers(1, 4096))


def arguments_of(kernel: Autotuner) -> st.SearchStrategy[dict[str, Any]]:
    """Whatever arguments a launch may have; those of the configuration are not there yet."""
    names = [argument for argument in kernel.arg_names if argument not in chosen_arguments(kernel)]
    return st.fixed_dictionaries({argument: values_of(argument) for argument in names})


@settings(max_examples=500)
@given(st.data())
def test_pruning_leaves_a_configuration(data: st.DataObject) -> None:
    """In the order of the list, the same each time, and without a change to the list."""
    kernel = data.draw(st.sampled_from(KERNELS))
    arguments = data.draw(arguments_of(kernel))
    before = [str(config) for config in kernel.configs]
    backend = data.draw(st.sampled_from([None, "cuda", "hip"]))
    left = tuning.pruned_configs(kernel, (), arguments, backend)
    assert left
    places = [kernel.configs.index(config) for config in left]
    assert places == sorted(set(places))
    assert left == tuning.pruned_configs(kernel, (), arguments, backend)
    assert [str(config) for config in kernel.configs] == before


@every_kernel
def test_pruning_is_plain_python(kernel: Autotuner, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks neither the device nor a tensor's values: meta tensors have none."""

    def asked(*_: Any) -> None:
        raise AssertionError("the driver was asked")

    monkeypatch.setattr(type(triton.runtime.driver), "active", property(asked))
    arguments = {
        argument: torch.empty(1, device="meta") if argument.endswith("_ptr") else 16
        for argument in kernel.arg_names
        if argument not in chosen_arguments(kernel)
    }
    assert tuning.pruned_configs(kernel, (), arguments)


@every_kernel
def test_every_configuration_can_be_taken(kernel: Autotuner) -> None:
    """By some launch: what pruning always removes would never be tuned."""
    taken: set[str] = set()
    for channels, size, flag, dtype in product((16, 32, 64, 256, 1024), (2, 7, 14, 28, 64), (False, True), DTYPES):
        arguments: dict[str, Any] = dict.fromkeys(kernel.arg_names, channels)
        arguments |= {argument: torch.empty(1, dtype=dtype) for argument in arguments if argument.endswith("_ptr")}
        arguments |= dict.fromkeys(FLAGS & set(arguments), flag)
        sizes = {"SIZE": size, "BLOCK_H": triton.next_power_of_2(size)}
        arguments |= {argument: value for argument, value in sizes.items() if argument in arguments}
        for backend in ("cuda", "hip"):
            taken |= {str(config) for config in tuning.pruned_configs(kernel, (), arguments, backend)}
    assert taken == {str(config) for config in kernel.configs}


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Nothing is launched, but for each tuned kernel that would be its name and key are noted here."""
    noted: list[tuple[Any, ...]] = []

    def record(kernel: Any, grid: Any, tensors: Any, **arguments: Any) -> None:
        if isinstance(kernel, Autotuner):
            noted.append((name_of(kernel), *tuning.key_of(kernel, tensors, arguments)))

    monkeypatch.setattr(tuning, "launch", record)
    return noted


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_what_is_fastest_on_small_maps_is_not_taken_for_large_ones(
    memory_format: torch.memory_format, keys: list[tuple[Any, ...]]
) -> None:
    """Nor the other way round: a first run on toy images decides nothing for others."""

    def keys_of(side: int) -> list[tuple[Any, ...]]:
        keys.clear()
        features = torch.zeros(2, 16, side, side).contiguous(memory_format=memory_format).requires_grad_()
        none, rois = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 5)
        offsets = torch.arange(2)
        polygons = kernels.Polygons(torch.zeros(3, 2), 3 * offsets, offsets, side, side)
        with kernels.use("triton"):
            for ratio in (0, 2):
                kernels.roi_align(features, rois, 7, sampling_ratio=ratio).sum().backward()
            kernels.roi_pool(features, rois, 7).sum().backward()
            for masks in (torch.zeros(1, side, side, dtype=torch.uint8), polygons):
                kernels.mask_loss(torch.zeros(3, 1, 4, 4), none, rois[:, 1:], masks, none)
            kernels.paste_masks(torch.zeros(3, 4, 4), rois[:, 1:], (side, side))
            kernels.mask_runs(torch.zeros(3, 4, 4), rois[:, 1:], (side, side))
        return list(keys)

    small, alike, large = keys_of(65), keys_of(66), keys_of(200)
    assert small == alike
    assert len(small) >= 8
    assert all(one != other for one, other in zip(small, large, strict=True))


def test_one_more_of_anything_in_a_bucket_is_the_same_key(
    keys: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one more than the bucket is another, for every kernel."""

    def keys_of(number: int) -> list[tuple[Any, ...]]:
        keys.clear()
        boxes, none = torch.zeros(number, 4), torch.zeros(number, dtype=torch.int64)
        rois, masks = torch.zeros(number, 5), torch.zeros(3, 9, 9, dtype=torch.uint8)
        with kernels.use("triton"):
            for memory_format in (torch.channels_last, torch.contiguous_format):
                features = torch.zeros(2, 16, 8, 8).contiguous(memory_format=memory_format).requires_grad_()
                kernels.roi_align(features, rois, 7).sum().backward()
                kernels.roi_align(features, rois, 7, sampling_ratio=2)
                kernels.roi_pool(features, rois, 7).sum().backward()
            for most in (256, 0):  # both forms
                monkeypatch.setattr(nms_at_once, "MOST_BOXES", most)
                kernels.segmented_nms(boxes[None], boxes[None, :, 0], 0.5, number)
            logits = torch.zeros(number, 16, 4, 4, requires_grad=True)
            kernels.mask_loss(logits, none, boxes, masks, none).backward()
            weight, bias = torch.zeros(3, 16, requires_grad=True), torch.zeros(3)
            kernels.mask_predict_loss(logits, weight, bias, none, boxes, masks, none).backward()
            vertices, offsets = torch.zeros(3 * number, 2), torch.arange(number + 1)
            polygons = kernels.Polygons(vertices, 3 * offsets, offsets, 9, 9)
            kernels.mask_loss_with_counts(logits, none, boxes, polygons, none)
            kernels.rasterize_polygons(polygons)
            kernels.paste_masks(boxes.new_zeros(number, 4, 4), boxes, (20, 20))
            kernels.mask_runs(boxes.new_zeros(number, 4, 4), boxes, (20, 20))
            kernels.decode_boxes(boxes[None], boxes, boxes[None, :, 0], torch.ones(1, 2))
            kernels.decode_keypoints(boxes.new_zeros(number, 1, 4, 4), boxes)
            kernels.match_boxes(boxes, boxes[None], torch.tensor([number]))
        return list(keys)

    first, last, above = keys_of(65), keys_of(128), keys_of(129)
    assert {key[0] for key in first} == {name_of(kernel) for kernel in KERNELS}
    assert first == last
    assert all(one != other for one, other in zip(last, above, strict=True))

"""Every configuration of a kernel gives the same bits, on the virtual GPU: tuning changes no result.

Compiled code may differ where the source does not: a multiplication is fused with one addition or another.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import kernels
from bench.compiled.launches import name_of, recorded, tuned_kernels
from bench.virtual_gpu.intercept import active
from kernels.gpu import tuning
from kernels.gpu.tuning import pruned_configs

pytestmark = pytest.mark.compiled

LAST, FIRST = torch.channels_last, torch.contiguous_format


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_boxes(number: int, extent: float, seed: int = 0) -> Tensor:
    corner, size = torch.rand((2, number, 2), generator=torch.Generator().manual_seed(seed)) * extent / 2
    return torch.cat([corner, corner + size + 1], dim=1)


def leaf(tensor: Tensor, dtype: torch.dtype = torch.float32, memory_format: torch.memory_format = FIRST) -> Tensor:
    return tensor.to(dtype).contiguous(memory_format=memory_format).requires_grad_()


def with_gradients(result: Tensor, *leaves: Tensor) -> list[Tensor]:
    grad = some(*result.shape, seed=9).to(result.dtype)
    return [result.detach(), *torch.autograd.grad(result, leaves, grad)]


def rois() -> Tensor:
    return torch.cat([torch.zeros(4, 1), some_boxes(4, 60)], dim=1)


def roi_align(
    dtype: torch.dtype, memory_format: torch.memory_format, ratio: int, channels: int, size: int = 7
) -> list[Tensor]:
    levels = [leaf(some(1, channels, 16 >> level, 20 >> level, seed=level), dtype, memory_format) for level in range(2)]
    return with_gradients(
        kernels.multiscale_roi_align(
            levels, rois(), size, [1 / 4, 1 / 8], ratio, canonical_scale=32, canonical_level=2
        ),
        *levels,
    )


def roi_pool(memory_format: torch.memory_format) -> list[Tensor]:
    features = leaf(some(1, 512, 16, 20), memory_format=memory_format)
    return with_gradients(kernels.roi_pool(features, rois(), 7, 1 / 4), features)


def segmented_nms(number: int, present: int | None = None) -> list[Tensor]:
    boxes = torch.stack([some_boxes(number, 60, seed) for seed in range(2)])
    counts = None if present is None else torch.tensor([present, present // 2])
    return list(kernels.segmented_nms(boxes, some(2, number), 0.5, 60, counts))


def mask_targets() -> tuple[Tensor, Tensor, Tensor]:
    masks = some(2, 40, 50) > 0
    return some_boxes(4, 40), masks, torch.tensor([1, 0, 0, 1])


def mask_loss(dtype: torch.dtype, ratio: int, memory_format: torch.memory_format, size: int = 28) -> list[Tensor]:
    logits = leaf(some(4, 6, size, size), dtype, memory_format)
    labels = torch.tensor([5, 0, 3, 3])
    loss = kernels.mask_loss(logits, labels, *mask_targets(), sampling_ratio=ratio)
    return [loss.detach(), *torch.autograd.grad(loss, logits)]


def mask_predict(form: str) -> list[Tensor]:
    shape = (4, 14, 14, 2, 2, 256) if form == "blocks" else (4, 256, 28, 28)
    features = leaf(some(*shape), memory_format=LAST if form == "last" else FIRST)
    weight, bias = leaf(some(3, 256, seed=1)), leaf(some(3, seed=2))
    labels = torch.tensor([2, 0, 2, 1])
    results = with_gradients(kernels.mask_predict(features, weight, bias, labels), features, weight, bias)
    loss = kernels.mask_predict_loss(features, weight, bias, labels, *mask_targets())
    return [*results, *with_gradients(loss, features, weight, bias)]


def paste_masks(threshold: float | None, rule: Any) -> list[Tensor]:
    return [kernels.paste_masks(some(3, 28, 28).sigmoid(), some_boxes(3, 90), (90, 70), threshold, rule)]


def mask_runs(rule: Any) -> list[Tensor]:
    return list(kernels.mask_runs(some(3, 28, 28).sigmoid(), some_boxes(3, 90), (90, 70), 0.5, rule))


def polygons() -> kernels.Polygons:
    """Two instances, of two parts and of one with twelve corners each, on more rows than the longest block has."""
    vertices = some(36, 2).abs() * torch.tensor([40.0, 80.0])
    return kernels.Polygons(vertices, torch.tensor([0, 12, 24, 36]), torch.tensor([0, 2, 3]), 150, 90)


def mask_loss_of_polygons() -> list[Tensor]:
    logits = leaf(some(4, 6, 28, 28))
    boxes, _, index = mask_targets()
    loss, counts = kernels.mask_loss_with_counts(logits, torch.tensor([5, 0, 3, 3]), boxes, polygons(), index)
    return [loss.detach(), *counts, *torch.autograd.grad(loss, logits)]


def decode_boxes(counts: Tensor | None) -> list[Tensor]:
    scores = some(2, 2, 300, seed=1)
    sizes = torch.tensor([[60, 50], [40, 60]])
    weights = (10.0, 10.0, 5.0, 5.0)
    return list(kernels.decode_boxes(some(2, 2, 300, 4), some_boxes(300, 60), scores, sizes, counts, weights, 1.0, 0.1))


def decode_keypoints(memory_format: torch.memory_format) -> list[Tensor]:
    heatmaps = some(2, 2, 14, 14).contiguous(memory_format=memory_format)
    return list(kernels.decode_keypoints(heatmaps, torch.tensor([[3.2, 1.1, 140.7, 30.3], [2, 5, 41, 50]])))


def match_boxes() -> list[Tensor]:
    gt_boxes = torch.stack([some_boxes(30, 60, seed) for seed in range(2)])
    return list(kernels.match_boxes(some_boxes(300, 60, 5), gt_boxes, torch.tensor([30, 7])))


CASES: dict[str, Callable[[], list[Tensor]]] = {
    "roi_align, channels last": lambda: roi_align(torch.float32, LAST, 2, 256),
    "roi_align, channels last, 4 x 4": lambda: roi_align(torch.float32, LAST, 2, 32, 4),
    "roi_align, channels last, 2 x 2": lambda: roi_align(torch.float32, LAST, 3, 32, 2),
    "roi_align, channels last, many samples": lambda: roi_align(torch.float32, LAST, 5, 256),
    "roi_align, channels last, bfloat16": lambda: roi_align(torch.bfloat16, LAST, 2, 256),
    "roi_align, channels last, 14 x 14": lambda: roi_align(torch.float32, LAST, 2, 128, 14),
    "roi_align, channels last, 14 x 14, bfloat16": lambda: roi_align(torch.bfloat16, LAST, 2, 128, 14),
    "roi_align, channels last, adaptive, few channels": lambda: roi_align(torch.float32, LAST, -1, 40),
    "roi_align, channels last, fewer channels": lambda: roi_align(torch.float32, LAST, 2, 24),
    "roi_align, contiguous": lambda: roi_align(torch.float32, FIRST, 2, 64),
    "roi_align, contiguous, adaptive, bfloat16": lambda: roi_align(torch.bfloat16, FIRST, -1, 64),
    "roi_pool, channels last": lambda: roi_pool(LAST),
    "roi_pool, contiguous": lambda: roi_pool(FIRST),
    "segmented_nms": lambda: segmented_nms(300),
    "segmented_nms, room for many boxes": lambda: segmented_nms(5_000, 300),
    "segmented_nms, room for more boxes": lambda: segmented_nms(9_000, 300),
    "segmented_nms, at once": lambda: segmented_nms(200),
    "segmented_nms, at once, few boxes": lambda: segmented_nms(50),
    "mask_loss": lambda: mask_loss(torch.float32, 2, FIRST),
    "mask_loss, adaptive, channels last, bfloat16": lambda: mask_loss(torch.bfloat16, -1, LAST),
    "mask_loss, 56 x 56": lambda: mask_loss(torch.float32, 2, FIRST, 56),
    "mask_predict, blocks": lambda: mask_predict("blocks"),
    "mask_predict, channels last": lambda: mask_predict("last"),
    "mask_predict, contiguous": lambda: mask_predict("first"),
    "paste_masks": lambda: paste_masks(None, "torchvision"),
    "paste_masks, at centers, thresholded": lambda: paste_masks(0.5, "centers"),
    "mask_runs": lambda: mask_runs("torchvision"),
    "mask_runs, at centers": lambda: mask_runs("centers"),
    "rasterize_polygons": lambda: [kernels.rasterize_polygons(polygons()).bits],
    "mask_loss of polygons, with counts": mask_loss_of_polygons,
    "decode_boxes": lambda: decode_boxes(None),
    "decode_boxes, counted": lambda: decode_boxes(torch.tensor([300, 70])),
    "decode_keypoints": lambda: decode_keypoints(FIRST),
    "decode_keypoints, channels last": lambda: decode_keypoints(LAST),
    "match_boxes": match_boxes,
}


def configs_anywhere(kernel: Any, tensors: Sequence[Any], arguments: dict[str, Any]) -> list[triton.Config]:
    """Those that suit the launch on NVIDIA, then those that do on AMD alone."""
    here, there = (pruned_configs(kernel, tensors, arguments, backend) for backend in ("cuda", "hip"))
    return here + [config for config in there if config not in here]


def results_by_configuration(case: Callable[[], list[Tensor]]) -> list[tuple[str, list[Tensor]]]:
    """Results with every kernel's first, second, ... configuration, and which those were."""
    results: list[tuple[str, list[Tensor]]] = []
    most = 1
    while len(results) < most:
        number, counts = len(results), []

        def choose(_: str, configs: list[triton.Config], number: int = number, counts: list[int] = counts) -> Any:
            counts.append(len(configs))
            return configs[number % len(configs)]

        anywhere = mock.patch.object(tuning, "pruned_configs", configs_anywhere)
        with kernels.use("triton"), anywhere, active(choose=choose) as record:
            result = case()
        launches = [launch for launch in record.launches if launch.config]
        for launch in launches:
            assert not fusible(launch.ptx), f"{launch.kernel} {launch.config}: {fusible(launch.ptx)}"
        results.append(("\n".join(f"{launch.kernel} {launch.config}" for launch in launches), result))
        most = max(most, *counts)
    return results


def fusible(ptx: str) -> list[str]:
    """Additions of a product which ptxas may fuse, as neither of the two says how it is rounded.

    It would for one configuration and not for another, out of the virtual GPU's sight.
    """
    products = set(re.findall(r"\bmul\.f(?:32|64)\s+(%\w+),", ptx))
    sums = re.findall(r"\b(?:add|sub)\.f(?:32|64)\s+%\w+,\s*(\S+),\s*(\S+);", ptx)
    return [f"{first} + {second}" for first, second in sums if {first, second} & products]


def assert_same_bits(results: list[tuple[str, list[Tensor]]]) -> None:
    (default, expected), *others = results
    assert others
    for configs, result in others:
        equal = [torch.equal(seen, wanted) for seen, wanted in zip(result, expected, strict=True)]
        assert all(equal), f"{equal} for\n{configs}\nagainst\n{default}"


@pytest.mark.parametrize("case", CASES)
def test_same_bits(case: str) -> None:
    assert_same_bits(results_by_configuration(CASES[case]))


def test_cases_reach_every_configuration() -> None:
    with kernels.use("triton"), recorded() as launches:
        for case in CASES.values():
            case()
    reached = {
        f"{launch.name}: {config}"
        for launch in launches
        if launch.tuned
        for config in configs_anywhere(launch.tuned, launch.tensors, launch.arguments)
    }
    assert {f"{name_of(kernel)}: {config}" for kernel in tuned_kernels() for config in kernel.configs} == reached


@tuning.tuned(
    configs=[triton.Config({"BLOCK": block}) for block in (256, 512)], key=[], prune=lambda configs, _: list(configs)
)
@triton.jit
def _sum_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """As many partial sums as the configuration says."""
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, 4096, BLOCK):
        total += tl.load(x_ptr + first + tl.arange(0, BLOCK))
    tl.store(out_ptr, tl.sum(total, 0))


def test_a_sum_in_another_order_is_seen() -> None:
    """Seeded fault: the check above can fail."""

    def case() -> list[Tensor]:
        out = torch.empty(1)
        tuning.launch(_sum_kernel, (1,), (some(4096), out))
        return [out]

    with pytest.raises(AssertionError, match="against"):
        assert_same_bits(results_by_configuration(case))


def test_what_ptxas_may_fuse_is_seen() -> None:
    text = "mul{0}.f32 %r3, %r1, %r2;\n add{0}.f32 \t%r5, %r4, %r3;"
    assert fusible(text.format("")) == ["%r4 + %r3"]
    assert not fusible(text.format(".rn"))
    assert not fusible("fma.rn.f32 %r3, %r1, %r2, %r0; add.f32 %r5, %r4, %r3;")

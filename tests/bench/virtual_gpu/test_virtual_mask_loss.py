"""The mask loss, compiled and run on the virtual GPU: bytes, configurations and orders."""

from typing import Any

import pytest
import torch
import triton
from error_rule import assert_error_rule
from logs_to_compute import check_log1p
from polygons_to_draw import pycocotools, some_instances
from torch import Tensor
from torchvision.models.detection.roi_heads import maskrcnn_loss

import kernels
from bench.cases import Pyramid, mask_targets
from bench.kernel_figures import mask_loss_traffic
from bench.virtual_gpu import Options, unwritten
from bench.virtual_gpu.intercept import Choice, Record, active
from kernels.masks import polygons_from_coco

pytestmark = pytest.mark.compiled

IMAGE = Pyramid(images=1, height=160, width=224)


def case(rois: int = 12, size: int = 14, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Logits of three classes, labels, boxes, masks and their index; the last box goes over the border."""
    boxes, index, _, masks = mask_targets(IMAGE, per_image=rois, objects=4)
    boxes[-1] += torch.tensor([-40.0, -30, 20, 10])
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn((rois, 3, size, size), generator=generator)).to(dtype)
    return logits, torch.randint(0, 3, (rois,), generator=generator), boxes, masks, index


def ours(ratio: int, arguments: tuple[Any, ...], choose: Choice, options: Options) -> tuple[list[Tensor], Record]:
    leaf = arguments[0].clone().requires_grad_()
    with kernels.use("triton"), active(choose=choose, options=options) as record:
        loss = kernels.mask_loss(leaf, *arguments[1:], sampling_ratio=ratio)
        loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert not bool(unwritten(leaf.grad).any())
    return [loss.detach(), leaf.grad], record


@pytest.mark.parametrize("size", [14, 56])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_rule(dtype: torch.dtype, size: int) -> None:
    """Also where a row of cells has two parts."""
    logits, labels, boxes, masks, index = case(dtype=dtype, size=size)

    def torchvisions(precision: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf = logits.to(precision).requires_grad_()
        own = [masks[index]], [labels], [torch.arange(len(boxes))]
        loss = maskrcnn_loss(leaf, [boxes.to(precision)], *own)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    seen, _ = ours(-1, (logits, labels, boxes, masks, index), lambda _, configs: configs[0], Options())
    truth, plain = torchvisions(torch.float64), torchvisions(torch.float32)
    assert_error_rule(seen[0], truth[0], plain[0], torch.float32)
    assert_error_rule(seen[1], truth[1], plain[1].to(dtype), dtype)


@pytest.mark.parametrize("ratio", [2, -1])
def test_every_configuration_and_order_gives_the_same_bits(ratio: int) -> None:
    arguments = case(rois=6)
    numbers: set[int] = set()

    def run(number: int, options: Options) -> list[Tensor]:
        def choose(name: str, configs: list[triton.Config]) -> triton.Config:
            numbers.add(len(configs))
            return configs[min(number, len(configs) - 1)]

        return ours(ratio, arguments, choose, options)[0]

    first = run(0, Options())
    runs = [run(number, Options()) for number in range(1, max(numbers))] + [run(0, Options(reverse=True, quantum=1))]
    assert len(runs) > 3
    for again in runs:
        assert all(a.equal(b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(("ratio", "most"), [(2, 0.025), (-1, 0.06)])
def test_bytes_beside_torchvision(ratio: int, most: float) -> None:
    """`bench.kernel_figures.mask_loss_traffic` measures whole images; here the RoIs are many for the image."""
    boxes, index, _, masks = mask_targets(Pyramid(images=1, height=400, width=672), per_image=24, objects=8)
    theirs, _ = mask_loss_traffic.torchvision_bytes(boxes, index, masks, 1)
    forward, backward = mask_loss_traffic.ours(boxes, index, masks, ratio)
    assert mask_loss_traffic.moved(forward) < most * theirs
    assert max(launch.counters.longest_warp for launch in forward.launches) < 20_000
    dense = len(boxes) * mask_loss_traffic.CLASSES * mask_loss_traffic.SIZE**2 * 4
    assert [launch.kernel for launch in backward.launches] == ["_gradient_kernel"]
    assert mask_loss_traffic.moved(backward) < 1.05 * dense


@pytest.mark.parametrize("size", [(64, 64), (37, 97)], ids=str)
def test_polygons_are_drawn_as_pycocotools_draws_them(size: tuple[int, int]) -> None:
    instances = some_instances(150, *size, seed=sum(size))
    polygons = polygons_from_coco(instances, *size)
    with kernels.use("triton"), active() as record:
        seen = kernels.rasterize_polygons(polygons)
    assert not bool(unwritten(seen.bits).any())
    assert kernels.unpack_masks(seen).equal(pycocotools(instances, *size))
    assert [launch.kernel for launch in record.launches] == ["_extent_kernel", "_raster_kernel"]


@pytest.mark.parametrize("ratio", [2, -1])
def test_every_form_of_masks(ratio: int) -> None:
    """Each form is a kernel of its own, where the compiler fuses other products and sums: equal but for rounding."""
    logits, labels, boxes, _, index = case()
    instances = some_instances(4, IMAGE.height, IMAGE.width, seed=7)
    masks = pycocotools(instances, IMAGE.height, IMAGE.width)

    def reference(precision: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf = logits.detach().to(precision).requires_grad_()
        with kernels.use("reference"):
            loss = kernels.mask_loss(leaf, labels, boxes.to(precision), masks, index, sampling_ratio=ratio)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    truth, plain = reference(torch.float64), reference(torch.float32)
    bytes_moved = []
    for form in (masks, polygons_from_coco(instances, IMAGE.height, IMAGE.width), kernels.pack_masks(masks)):
        arguments = (logits, labels, boxes, form, index)
        seen, record = ours(ratio, arguments, lambda _, configs: configs[0], Options())
        for a, b, c in zip(seen, truth, plain, strict=True):
            assert_error_rule(a, b, c, torch.float32)
        bytes_moved.append(record.launches[-2].counters.dram_bytes)
    assert max(bytes_moved[1:]) < bytes_moved[0]


@pytest.mark.parametrize("ratio", [2, -1])
def test_counts(ratio: int) -> None:
    """In the same launch; no target is near 0.5, where rounding would decide."""
    logits, *rest = case()
    weights = torch.ones(len(logits))
    weights[3] = 0

    def run() -> tuple[Tensor, kernels.MaskCounts]:
        return kernels.mask_loss_with_counts(logits, *rest, weights, ratio)

    with kernels.use("triton"), active() as record:
        loss, counts = run()
    with kernels.use("reference"):
        _, expected = run()
    assert [launch.kernel for launch in record.launches] == ["_loss_kernel"]
    assert [each.item() for each in counts] == [each.item() for each in expected]
    assert loss.equal(ours(ratio, (logits, *rest, weights), lambda _, configs: configs[0], Options())[0][0])


@pytest.mark.parametrize("rounding", ["nearest", "low", "high"])
def test_logarithm(rounding: Any) -> None:
    """It has no approximate instruction."""
    with active(options=Options(rounding=rounding)) as record:
        check_log1p(torch.float32)
    assert not any(each.launch.approximate for each in record.launches)
    with active():
        check_log1p(torch.float64)

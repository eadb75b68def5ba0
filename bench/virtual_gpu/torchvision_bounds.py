"""`python -m bench.virtual_gpu.torchvision_bounds`: lower bounds of torchvision's kernels on the training workload.

What our kernels are compared with. Takes a few minutes: some two thousand million warp instructions.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor

from bench.cases import FULL, SCALES, Workload, gradients, levels_of, one_call, proposals, rpn_boxes
from bench.error_rule import compare
from bench.virtual_gpu import torchvision_kernels
from bench.virtual_gpu.counters import Counters
from bench.virtual_gpu.device import H100, VirtualGpu
from bench.virtual_gpu.roofline import Roofline, roofline

RATIO = 2


@dataclass(frozen=True)
class PeerBound:
    """A kernel of torchvision on the workload.

    Attributes:
        difference: the largest to torchvision's own CPU operation.
        wrong: what is more than rounding about it; empty if nothing is.
    """

    name: str
    counters: Counters
    bound: Roofline
    difference: float
    wrong: str = ""


def forward(size: int, seed: int = 4, workload: Workload = FULL, device: VirtualGpu = H100) -> PeerBound:
    """RoIAlign of all levels, a launch for each; `size` bins a side, `seed` of the RoIs."""
    pyramid = workload.pyramid
    rois = proposals(pyramid, workload.rois_per_image, seed=seed)
    levels = levels_of(rois)
    counters, difference, wrong = Counters(), 0.0, ""
    for level, feature in enumerate(pyramid.features()):
        feature = feature.contiguous()
        own = rois[levels == level].contiguous()
        if not len(own):
            continue
        arguments = (SCALES[level], RATIO, False)
        out, launch = torchvision_kernels.roi_align_forward(feature, own, (size, size), *arguments, device=device)
        launch.check()
        counters += launch.counters
        wanted = torchvision.ops.roi_align(feature, own, size, *arguments)
        truth = torchvision.ops.roi_align(feature.double(), own.double(), size, *arguments)
        difference = max(difference, (out - wanted).abs().max().item())
        wrong = wrong or _wrong(out, truth, wanted)
    return PeerBound(f"RoIAlign forward {size}x{size}", counters, roofline(counters, device), difference, wrong)


def backward(size: int, seed: int = 4, workload: Workload = FULL, device: VirtualGpu = H100) -> PeerBound:
    """The gradients of all levels, without zeroing them."""
    pyramid = workload.pyramid
    rois = proposals(pyramid, workload.rois_per_image, seed=seed)
    levels, grads = levels_of(rois), gradients(pyramid, size, len(rois))
    counters, difference, wrong = Counters(), 0.0, ""
    for level, shape in enumerate(pyramid.shapes()):
        own, grad = rois[levels == level].contiguous(), grads[levels == level].contiguous()
        if not len(own):
            continue
        arguments = (SCALES[level], RATIO, False)
        out, launch = torchvision_kernels.roi_align_backward(grad, own, shape, *arguments, device=device)
        launch.check()
        counters += launch.counters
        wanted, truth = (
            _cpu_gradient(grad.to(dtype), own, shape, arguments) for dtype in (torch.float32, torch.float64)
        )
        difference = max(difference, (out - wanted).abs().max().item())
        wrong = wrong or _wrong(out, truth, wanted)
    return PeerBound(f"RoIAlign backward {size}x{size}", counters, roofline(counters, device), difference, wrong)


def _wrong(out: Tensor, truth: Tensor, wanted: Tensor) -> str:
    compared = compare(out, truth, wanted, torch.float32)
    return "" if compared.holds else str(compared)


def _cpu_gradient(
    grad: Tensor, rois: Tensor, shape: tuple[int, int, int, int], arguments: tuple[float, int, bool]
) -> Tensor:
    feature = grad.new_zeros(shape).requires_grad_()
    pooled = torchvision.ops.roi_align(feature, rois.to(grad.dtype), grad.shape[2:], *arguments)
    return torch.autograd.grad(pooled, feature, grad)[0]


def nms(threshold: float = 0.7, seed: int = 5, workload: Workload = FULL, device: VirtualGpu = H100) -> PeerBound:
    """The mask kernel on all segments in one call; `difference` counts boxes kept by one side only."""
    boxes = one_call(*rpn_boxes(workload.segments, workload.boxes, seed))
    mask, launch = torchvision_kernels.nms_mask(boxes, threshold, device=device)
    launch.check()
    kept = torchvision_kernels.keep_of_mask(mask)
    falling = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
    wanted = torchvision.ops.nms(boxes, falling, threshold)
    difference = len(set(kept.tolist()) ^ set(wanted.tolist()))
    wrong = f"{difference} boxes are kept by one side only" if difference else ""
    return PeerBound("NMS mask", launch.counters, roofline(launch.counters, device), difference, wrong)


def bounds(device: VirtualGpu = H100) -> Iterator[PeerBound]:
    """Every figure, one after another."""
    cases: list[Callable[[], PeerBound]] = [
        lambda: forward(7, device=device),
        lambda: forward(14, device=device),
        lambda: backward(7, device=device),
        lambda: backward(14, device=device),
        lambda: nms(device=device),
    ]
    for case in cases:
        yield case()


def main() -> int:
    torch.set_num_threads(1)
    started = time.monotonic()
    for each in bounds():
        counters = each.counters
        print(
            f"{each.name:24s} {each.bound.seconds * 1e6:8.1f} us by {each.bound.limiter:7s} "
            f"difference {each.difference:.1e}, {counters.warp_instructions / 1e6:7.2f} M instructions, "
            f"{counters.l1_lines / 1e6:6.2f} M lines, {counters.dram_bytes / 1e6:6.1f} MB of "
            f"{counters.least_bytes / 1e6:.1f}, {counters.atomic_sectors / 1e6:6.2f} M atomic sectors, "
            f"longest warp {counters.longest_warp}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
        if each.wrong:
            print(f"WRONG: {each.wrong}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

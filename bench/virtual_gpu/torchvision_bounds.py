"""`python -m bench.virtual_gpu.torchvision_bounds`: lower bounds of torchvision's kernels on the training workload.

What our kernels are compared with. Takes a few minutes: some two thousand million warp instructions.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torchvision

from bench.cases import SCALES, Pyramid, gradients, levels_of, one_call, proposals, rpn_boxes
from bench.virtual_gpu import torchvision_kernels
from bench.virtual_gpu.counters import Counters
from bench.virtual_gpu.device import H100, VirtualGpu
from bench.virtual_gpu.roofline import Roofline, roofline

RATIO = 2


@dataclass(frozen=True)
class PeerBound:
    """A kernel of torchvision on the workload; `difference` is the largest to torchvision's own CPU operation."""

    name: str
    counters: Counters
    bound: Roofline
    difference: float


def forward(size: int, seed: int = 4, device: VirtualGpu = H100) -> PeerBound:
    """RoIAlign of all levels, a launch for each; `size` bins a side, `seed` of the RoIs."""
    pyramid = Pyramid()
    rois = proposals(pyramid, seed=seed)
    levels = levels_of(rois)
    counters, difference = Counters(), 0.0
    for level, feature in enumerate(pyramid.features()):
        feature = feature.contiguous()
        own = rois[levels == level].contiguous()
        arguments = (SCALES[level], RATIO, False)
        out, launch = torchvision_kernels.roi_align_forward(feature, own, (size, size), *arguments, device=device)
        launch.check()
        counters += launch.counters
        wanted = torchvision.ops.roi_align(feature, own, size, *arguments)
        difference = max(difference, (out - wanted).abs().max().item())
    return PeerBound(f"RoIAlign forward {size}x{size}", counters, roofline(counters, device), difference)


def backward(size: int, seed: int = 4, device: VirtualGpu = H100) -> PeerBound:
    """The gradients of all levels, without zeroing them."""
    pyramid = Pyramid()
    rois = proposals(pyramid, seed=seed)
    levels, grads = levels_of(rois), gradients(pyramid, size)
    counters, difference = Counters(), 0.0
    for level, shape in enumerate(pyramid.shapes()):
        own, grad = rois[levels == level].contiguous(), grads[levels == level].contiguous()
        arguments = (SCALES[level], RATIO, False)
        out, launch = torchvision_kernels.roi_align_backward(grad, own, shape, *arguments, device=device)
        launch.check()
        counters += launch.counters
        feature = torch.zeros(shape, requires_grad=True)
        torchvision.ops.roi_align(feature, own, size, *arguments).backward(grad)
        assert feature.grad is not None
        difference = max(difference, (out - feature.grad).abs().max().item())
    return PeerBound(f"RoIAlign backward {size}x{size}", counters, roofline(counters, device), difference)


def nms(threshold: float = 0.7, seed: int = 5, device: VirtualGpu = H100) -> PeerBound:
    """The mask kernel on ten segments of 2,000 boxes in one call; `difference` counts boxes kept by one side only."""
    boxes = one_call(*rpn_boxes(10, 2000, seed))
    mask, launch = torchvision_kernels.nms_mask(boxes, threshold, device=device)
    launch.check()
    kept = torchvision_kernels.keep_of_mask(mask)
    falling = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
    wanted = torchvision.ops.nms(boxes, falling, threshold)
    difference = len(set(kept.tolist()) ^ set(wanted.tolist()))
    return PeerBound("NMS mask", launch.counters, roofline(launch.counters, device), difference)


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
    return 0


if __name__ == "__main__":
    sys.exit(main())

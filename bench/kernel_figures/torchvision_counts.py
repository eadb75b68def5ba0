"""Figures of torchvision's own kernels on the virtual GPU, and of what its eager mask loss moves."""

from collections.abc import Sequence

import torch
import torchvision

from bench.cases import FULL, Workload
from bench.error_rule import compare
from bench.kernel_figures.cases import IOU_THRESHOLD, differentiate, mask_loss
from bench.kernel_figures.checks import WrongResult
from bench.results import Row
from bench.virtual_gpu import H100, Counters, torchvision_bounds, torchvision_kernels
from bench.virtual_gpu.roofline import bytes_seconds, roofline
from bench.virtual_gpu.torch_operations import TorchOperation, Watch

DEVICE = H100
TORCHVISION = "torchvision, virtual H100"


def count_torchvision(operation: str, size: int, seed: int, workload: Workload = FULL) -> list[Row]:
    """Rows of torchvision's own float32 kernels, RoIAlign's summed over levels, the mask loss's with all it does.

    Args:
        operation: as in `bench.kernel_figures.cases.OPERATIONS`. size: of RoIAlign.

    Raises:
        WrongResult: what it computes here differs from what it computes on the CPU.
    """
    if operation == "mask_loss":
        return [_torchvision_mask_loss(seed, workload)]
    if operation == "segmented_nms":
        bounds = {"forward": torchvision_bounds.nms(IOU_THRESHOLD, seed, workload, DEVICE)}
        name = f"segmented_nms {workload.segments} x {workload.boxes}"
    else:
        bounds = {
            "forward": torchvision_bounds.forward(size, seed, workload, DEVICE),
            "backward": torchvision_bounds.backward(size, seed, workload, DEVICE),
        }
        name = f"roi_align {size}x{size}"
    rows = []
    for direction, bound in bounds.items():
        if bound.wrong:
            raise WrongResult(f"torchvision's {bound.name} on the virtual GPU: {bound.wrong}")
        figures = {"time bound, us": 1e6 * bound.bound.seconds, **counted(bound.counters)}
        rows.append(Row(f"{name}, {direction}", "float32", "contiguous", seed, TORCHVISION, "", figures))
    return rows


def _torchvision_mask_loss(seed: int, workload: Workload) -> Row:
    """`maskrcnn_loss` and its gradient: every operation of PyTorch, and RoIAlign's kernel on the virtual GPU."""
    case = mask_loss(-1, torch.float32, seed, workload)
    inputs = case.peer_inputs()
    operations: list[TorchOperation] = []
    with Watch(operations.append, pattern=None):
        outputs = case.peer(inputs)
        differentiate(outputs, inputs)
    counters = Counters()
    images, size = workload.pyramid.images, workload.mask_size
    chunks = [inputs[name].chunk(images) for name in ("masks", "boxes", "index")]
    for image, (masks, boxes, index) in enumerate(zip(*chunks, strict=True)):
        rois = torch.cat([(index - image * len(masks)).float()[:, None], boxes], 1)
        arguments = (masks[:, None].float(), rois, (size, size), 1.0, -1, False)
        sampled, launch = torchvision_kernels.roi_align_forward(*arguments, device=DEVICE)
        launch.check()
        wanted = torchvision.ops.roi_align(*arguments)
        truth = torchvision.ops.roi_align(masks[:, None].double(), rois.double(), *arguments[2:])
        compared = compare(sampled, truth, wanted, torch.float32)
        if not compared.holds:
            raise WrongResult(f"torchvision's RoIAlign of masks on the virtual GPU: {compared}")
        counters += launch.counters
    torch_bytes = bytes_of_mask_loss(operations, len(inputs["boxes"]), size)
    figures = {
        "time bound, us": 1e6 * (roofline(counters, DEVICE).seconds + bytes_seconds(torch_bytes, DEVICE)),
        **counted(counters),
        "launches": images,
        "PyTorch operations": len(operations),
        "PyTorch, MB": torch_bytes / 1e6,
        "moved, MB": (counters.dram_bytes + torch_bytes) / 1e6,
    }
    name = f"mask_loss {size}x{size}, adaptive, forward and backward"
    return Row(name, "float32", "contiguous", seed, TORCHVISION, "", figures)


def bytes_of_mask_loss(operations: Sequence[TorchOperation], rois: int, size: int) -> int:
    """Bytes that operations of PyTorch moved for `maskrcnn_loss` and its gradient in float32.

    Autograd zeroes the logits' gradient and puts the chosen channels into it in place, but not while it is watched.
    """
    chosen = 2 * rois * size * size * 4
    return sum(chosen if each.name == "index_put" else each.bytes_read + each.bytes_written for each in operations)


def counted(counters: Counters) -> dict[str, float]:
    """What is shown of any kernel."""
    return {
        "M instructions": counters.warp_instructions / 1e6,
        "M L1 lines": counters.l1_lines / 1e6,
        "DRAM, MB": counters.dram_bytes / 1e6,
        "M atomic sectors": counters.atomic_sectors / 1e6,
        "longest warp": counters.longest_warp,
    }

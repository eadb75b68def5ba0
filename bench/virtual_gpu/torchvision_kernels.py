"""torchvision's own CUDA kernels, out of the installed wheel, run on CPU tensors.

The wheel carries PTX for the newest architecture, which the virtual GPU takes as it is. Arguments and launch shapes
are those of torchvision's csrc/ops/cuda.
"""

import hashlib
import importlib.util
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.virtual_gpu.device import H100, VirtualGpu
from bench.virtual_gpu.launch import Launch, Options, run
from bench.virtual_gpu.native import cache_folder
from bench.virtual_gpu.program import Program, assemble
from bench.virtual_gpu.toolkit import assembled, resources, tool

ROI_THREADS = 512
NMS_THREADS = 64


@dataclass(frozen=True)
class TorchvisionKernel:
    """A float32 kernel and the registers that ptxas gives a thread of it."""

    program: Program
    registers: int


def load_kernel(function: str) -> TorchvisionKernel:
    """The float32 kernel whose C++ function has this name.

    Raises:
        RuntimeError: torchvision is not installed, or was built without CUDA.
        KeyError: it has no such kernel.
    """
    mangled = f"{len(function)}{function}If"  # the length tells roi_align_ from ps_roi_align_
    for path in _modules():
        ptx = path.read_text()
        if mangled in ptx:
            program = assemble(ptx, mangled)
            return TorchvisionKernel(program, resources(assembled(ptx, program.kernel.name)).registers)
    raise KeyError(function)


def roi_align_forward(
    features: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    *,
    device: VirtualGpu = H100,
    options: Options | None = None,
) -> tuple[Tensor, Launch]:
    """torchvision.ops.roi_align by its CUDA kernel, and what the launch did.

    Args:
        features: [N, C, H, W], contiguous. rois: [K, 5] image index, x1, y1, x2, y2. Both float32 on the CPU.

    Returns:
        [K, C, *output_size], and the launch.
    """
    height, width = output_size
    _, channels, rows, columns = features.shape
    out = features.new_zeros((rois.shape[0], channels, height, width))
    sizes = (channels, rows, columns, height, width, sampling_ratio, aligned)
    arguments = [out.numel(), features, spatial_scale, *sizes, rois, out]
    kernel = load_kernel("roi_align_forward_kernel_impl")
    return out, _run(kernel, _roi_grid(out), ROI_THREADS, arguments, device, options)


def roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    shape: tuple[int, int, int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    *,
    device: VirtualGpu = H100,
    options: Options | None = None,
) -> tuple[Tensor, Launch]:
    """The gradient [N, C, H, W] of `roi_align_forward`'s features of this shape, from `grad` [K, C, PH, PW].

    Zeroing the gradient first is another launch, which is not counted here.
    """
    _, channels, rows, columns = shape
    height, width = grad.shape[2:]
    out = grad.new_zeros(shape)
    sizes = (channels, rows, columns, height, width, sampling_ratio, aligned)
    arguments = [grad.numel(), grad, spatial_scale, *sizes, out, rois, *grad.stride(), out.numel()]
    kernel = load_kernel("roi_align_backward_kernel_impl")
    return out, _run(kernel, _roi_grid(grad), ROI_THREADS, arguments, device, options)


def nms_mask(
    boxes: Tensor, iou_threshold: float, *, device: VirtualGpu = H100, options: Options | None = None
) -> tuple[Tensor, Launch]:
    """The mask kernel of torchvision.ops.nms: which boxes suppress which.

    Args:
        boxes: [N, 4] in the order of falling scores, float32 on the CPU.

    Returns:
        [N, ceil(N / 64)] int64, bit j of word (i, w) for box 64 w + j > i that overlaps box i by more than the
        threshold; words before i's own stay zero. And the launch.
    """
    count = boxes.shape[0]
    words = -(-count // NMS_THREADS)
    mask = torch.zeros((count, words), dtype=torch.int64)
    kernel = load_kernel("nms_kernel_impl")
    return mask, _run(kernel, (words, words), NMS_THREADS, [count, iou_threshold, boxes, mask], device, options)


def keep_of_mask(mask: Tensor) -> Tensor:
    """The indices that torchvision's second step keeps, which runs on one thread there, too."""
    removed = torch.zeros_like(mask[0])
    kept = []
    for box, row in enumerate(mask):
        if not int(removed[box // NMS_THREADS]) >> box % NMS_THREADS & 1:
            kept.append(box)
            removed |= row
    return torch.tensor(kept, dtype=torch.int64)


def _roi_grid(elements: Tensor) -> tuple[int]:
    return (min(-(-elements.numel() // ROI_THREADS), 4096),)


def _run(
    kernel: TorchvisionKernel,
    grid: tuple[int, ...],
    threads: int,
    arguments: list[object],
    device: VirtualGpu,
    options: Options | None,
) -> Launch:
    return run(kernel.program, grid, threads, arguments, registers=kernel.registers, device=device, options=options)


def _modules() -> list[Path]:
    """The PTX modules of torchvision's library, extracted once."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        raise RuntimeError("torchvision is not installed")
    libraries = sorted(Path(found.origin).parent.glob("_C*.so"))
    digest = hashlib.sha256()
    for library in libraries:
        digest.update(f"{library} {library.stat().st_size} {library.stat().st_mtime_ns}".encode())
    folder = cache_folder() / f"torchvision-{digest.hexdigest()[:20]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            for library in libraries:
                command = [str(tool("cuobjdump")), "--extract-ptx", "all", str(library)]
                subprocess.run(command, cwd=made, check=True, capture_output=True)
            whole = Path(made) / "ptx"
            whole.mkdir()
            for path in Path(made).glob("*.ptx"):
                path.rename(whole / path.name)
            whole.rename(folder)
    modules = sorted(folder.glob("*.ptx"), key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])
    if not modules:
        raise RuntimeError("torchvision's library has no PTX inside: it was built without CUDA")
    return modules

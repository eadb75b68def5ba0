"""`python -m bench.kernel_figures.direct_sampling`: RoIAlign with each bin summing its own samples, beside ours.

That is the form of torchvision's kernels and of most others, here with all else as ours has it: all levels in one
launch, geometry once a program, channels last, float32 sums. A program takes some bins of a RoI and a block of
channels, in the ways of `SHAPES`. Counts and bounds of the virtual GPU; minutes. Why `kernels.gpu.roi_align` is
separable instead is what this shows.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

import kernels
from bench.cases import FULL, QUICK, SCALES, Workload, proposals
from bench.kernel_figures.cases import Case, Inputs
from bench.kernel_figures.counts import count
from bench.results import Row
from kernels.gpu import tuning
from kernels.gpu.language import pick_pointer, sample, sample_range, share_of_sample
from kernels.gpu.roi_geometry import level_tables, load_roi
from kernels.memory_format import empty_map

# Bins of a program, and its warps.
SHAPES = ((4, 1), (8, 1), (16, 2))
# Channels of a program: a line of the cache.
LINE_BYTES = 128
DTYPES = ("float32", "bfloat16")
FIGURES = ("time bound, us", "M instructions", "M L1 lines", "longest warp", "registers", "spilled bytes")


@triton.jit(do_not_specialize=["num_images"])
def direct_kernel(
    features,
    rois_ptr,
    out_ptr,
    levels,
    num_images,
    EXACT_SCALES: tl.constexpr,
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POOLED_H: tl.constexpr,
    POOLED_W: tl.constexpr,
    RATIO: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out: [K, POOLED_H, POOLED_W, CHANNELS]. Grid: RoIs, groups of BINS bins, blocks of BLOCK_C channels."""
    roi = tl.program_id(0).to(tl.int64)
    level, image, y_grid, x_grid = load_roi(
        rois_ptr, roi, levels, num_images, EXACT_SCALES, LEVELS, POOLED_H, POOLED_W, RATIO, False
    )
    rows, columns = y_grid[4].to(tl.int32), x_grid[4].to(tl.int32)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    feature = pick_pointer(features, level, LEVELS) + image.to(tl.int64) * rows * columns * CHANNELS + channel
    bin = tl.program_id(1) * BINS + tl.arange(0, BINS)
    inside = bin < POOLED_H * POOLED_W
    bin_y, bin_x = bin // POOLED_W, bin % POOLED_W
    total = tl.zeros((BINS, BLOCK_C), tl.float32)
    if RATIO > 0:
        for number_y in tl.static_range(RATIO):
            for number_x in tl.static_range(RATIO):
                total = _with_sample(
                    total, feature, y_grid, x_grid, bin_y, bin_x, number_y, number_x, inside, columns, CHANNELS
                )
    else:
        first_y, stop_y = sample_range(y_grid, bin_y, RATIO)
        first_x, stop_x = sample_range(x_grid, bin_x, RATIO)
        for number_y in range(tl.min(first_y), tl.max(stop_y)):
            for number_x in range(tl.min(first_x), tl.max(stop_x)):
                total = _with_sample(
                    total, feature, y_grid, x_grid, bin_y, bin_x, number_y, number_x, inside, columns, CHANNELS
                )
    out = out_ptr + (roi * (POOLED_H * POOLED_W) + bin)[:, None] * CHANNELS + channel
    total *= share_of_sample(y_grid, x_grid)
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _with_sample(
    total, feature, y_grid, x_grid, bin_y, bin_x, number_y, number_x, inside, columns, CHANNELS: tl.constexpr
):
    """`total` of each bin and channel with a sample, of its four pixels those with a weight."""
    y, y_counts = sample(y_grid, bin_y, number_y)
    x, x_counts = sample(x_grid, bin_x, number_x)
    top, left = y.to(tl.int32), x.to(tl.int32)
    counts = inside & y_counts & x_counts
    for down in tl.static_range(2):
        for right in tl.static_range(2):
            weight = (y - top if down == 1 else 1.0 - (y - top)) * (x - left if right == 1 else 1.0 - (x - left))
            weight = tl.where(counts, weight, 0.0)[:, None]
            pixel = ((top + down) * columns + left + right)[:, None]
            value = tl.load(feature + pixel * CHANNELS, mask=weight > 0, other=0.0)
            total = tl.fma(weight, value.to(tl.float32), total)
    return total


def direct(features: Sequence[Tensor], rois: Tensor, size: int, ratio: int, bins: int, warps: int) -> Tensor:
    """As `kernels.multiscale_roi_align` of channels-last maps, whose channels are some whole lines; no gradient."""
    channels = features[0].shape[1]
    out = empty_map(features[0], (len(rois), channels, size, size), channels_last=True)
    block = LINE_BYTES // features[0].element_size()
    tuning.launch(
        direct_kernel,
        (len(rois), triton.cdiv(size * size, bins), channels // block),
        (tuple(features), rois, out),
        **level_tables([feature.shape for feature in features], SCALES, 224.0, 4, rois.dtype),
        CHANNELS=channels,
        POOLED_H=size,
        POOLED_W=size,
        RATIO=ratio,
        BINS=bins,
        BLOCK_C=block,
        num_warps=warps,
        enable_fp_fusion=False,
    )
    return out


def forms(size: int, dtype: torch.dtype, ratio: int, number: int, workload: Workload) -> Iterator[tuple[str, Case]]:
    """Ours and those of `SHAPES`, for `number` RoIs an image; each is checked by our eager form."""

    def make(compute: torch.dtype, layout: str) -> Inputs:
        def held(feature: Tensor) -> Tensor:
            memory_format = torch.channels_last if layout == "channels last" else torch.contiguous_format
            return feature.to(dtype).to(compute).contiguous(memory_format=memory_format)

        features = [held(feature) for feature in workload.pyramid.features()]
        return {"leaves": [], "features": features, "rois": proposals(workload.pyramid, number, seed=4)}

    def ours(inputs: Inputs) -> tuple[Tensor, ...]:
        return (kernels.multiscale_roi_align(inputs["features"], inputs["rois"], size, SCALES, ratio),)

    def eager(inputs: Inputs) -> tuple[Tensor, ...]:
        with kernels.use("eager"):
            return ours(inputs)

    sampling = "adaptive" if ratio < 1 else f"ratio {ratio}"
    shape = f"{size}x{size}, {sampling}, {workload.pyramid.images} x {number} RoIs"
    case = Case("roi_align", shape, dtype, "channels last", 4, make, ours, eager, least=lambda inputs: {"forward": 1})
    yield "separable", case
    for bins, warps in SHAPES:

        def directly(inputs: Inputs, bins: int = bins, warps: int = warps) -> tuple[Tensor, ...]:
            return (direct(inputs["features"], inputs["rois"], size, ratio, bins, warps),)

        yield f"direct, {bins} bins in {warps} warps", replace(case, ours=directly)


def measure(
    sizes: Sequence[int],
    dtypes: Sequence[torch.dtype],
    ratios: Sequence[int],
    numbers: Sequence[int],
    workload: Workload = FULL,
) -> Iterator[Row]:
    """Counts of all forms.

    Raises:
        WrongResult: one does not give what the eager form gives.
    """
    for size, dtype, ratio, number in product(sizes, dtypes, ratios, numbers):
        for name, case in forms(size, dtype, ratio, number, workload):
            (row,) = count(case, orders=())
            yield replace(row, by=name)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernel_figures.direct_sampling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[7, 14], help="bins along a side")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--ratios", nargs="+", type=int, default=[2, -1], help="-1 is adaptive")
    parser.add_argument("--rois", nargs="+", type=int, default=[32, 512], help="an image")
    parser.add_argument("--quick", action="store_true", help="a small pyramid")
    picks = parser.parse_args(arguments)
    dtypes = [getattr(torch, name) for name in picks.dtypes]
    print(f"{'':90s}" + "".join(f"{name:>16s}" for name in FIGURES))
    for row in measure(picks.sizes, dtypes, picks.ratios, picks.rois, QUICK if picks.quick else FULL):
        figures = "".join(f"{row.figures[name]:16,.1f}" for name in FIGURES)
        print(f"{row.by + ': ' + row.case + ', ' + row.dtype:90s}{figures}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What is held for a problem of a compiled configuration.

Loads are judged where a kernel's bytes are: rows of channels (`HOT_LOADS`), in channels-last layout, have to be read 16
bytes at a time by each thread, or less where the threads of a program have less of a row (`hot_bytes`): narrow blocks,
and gradients of 16 bits, 8 bytes a thread. Loads of the other kernels are shown and not judged, each for a reason in
`NOT_JUDGED`; nor are those of any kernel in contiguous layout, where what a thread reads of a map are single pixels
under its samples. In float64, which is for checking, kernels have to compile; what they take is shown and not judged.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget

from bench.compiled.launches import AMPERE, BLACKWELL, HOPPER, MI300, Launch
from bench.compiled.machine_code import Demand, of_amd, of_nvidia

TARGETS = {"sm_80": AMPERE, "sm_90": HOPPER, "sm_100": BLACKWELL, "gfx942": MI300}
MOST_REGISTERS = 128
HOT_BYTES = 16

# Where most bytes are read as rows of channels, by kernel: the arguments whose loads have to be as wide as `hot_bytes`
# says in channels-last layout.
HOT_LOADS = {
    "_channels_last_kernel": ("features",),
    "_neighbours_kernel": ("features",),
    "gather_kernel": ("grad_ptr",),
    "_sum_kernel": ("sums_ptr",),
    "_logits_kernel": ("features_ptr",),
    "_class_gradient_kernel": ("features_ptr",),
    "_pool_kernel": ("input_ptr",),
    "_source_kernel": ("grad_ptr", "source_ptr"),
}
# Why the loads of all other kernels are not.
NOT_JUDGED = {
    "single pixels under samples, or single columns of a box": (
        *("_contiguous_kernel", "_loss_kernel", "_paste_kernel", "_edges_kernel", "_keypoint_kernel"),
    ),
    "a box is four numbers, 16 bytes in float32 and 8 in 16 bits, read whole or shared by a warp": (
        *("_decode_kernel", "_best_kernel", "_forced_kernel", "_mask_kernel", "_at_once_kernel"),
    ),
    "words of 64 boxes, 8 bytes, of rows that lie apart": ("_reduce_kernel",),
    "a few numbers of each RoI and tile, the same for all channels": (
        *("_order_kernel", "_window_kernel", "_tile_kernel", "_weights_kernel", "_work_kernel", "_deal_kernel"),
    ),
    "a small part of the bytes: sums for a class's weights, once": ("_class_sum_kernel",),
    "it writes: a number read is a whole row of zeros but for one": ("_gradient_kernel",),
    "vertices of a part, and edges of a mask, one after another": ("_extent_kernel", "_raster_kernel", "_runs_kernel"),
}


@dataclass(frozen=True)
class Row:
    """A configuration on a target. demand: None if it does not compile. problems: what must not be.

    checking: it is in float64, and only has to compile.
    """

    kernel: str
    launched_by: str
    config: str
    target: str
    demand: Demand | None
    problems: tuple[str, ...]
    checking: bool = False


def examine(launch: Launch, launched_by: str, config: triton.Config | None, target: str) -> Row:
    """Compiles one configuration."""
    specialized = launch.specialize(config, TARGETS[target])
    chosen = told(config)
    try:
        kernel = specialized.compile()
    except Exception as error:  # whatever the compiler raises is the finding
        problem = f"does not compile: {type(error).__name__}: {str(error).strip().splitlines()[-1:]}"
        return Row(launch.name, launched_by, chosen, target, None, (problem,))
    if TARGETS[target].backend == "hip":
        demand = of_amd(kernel)
    else:
        pointers = [name if isinstance(value, Tensor) else None for name, value in specialized.parameters()]
        demand = of_nvidia(kernel, pointers)
    if is_for_checking(launch):
        return Row(launch.name, launched_by, chosen, target, demand, (), checking=True)
    hot = hot_bytes(launch, config, TARGETS[target])
    return Row(launch.name, launched_by, chosen, target, demand, tuple(problems(demand, hot, TARGETS[target])))


def is_for_checking(launch: Launch) -> bool:
    """Whether it takes anything in float64."""
    return any(isinstance(each, Tensor) and each.dtype == torch.float64 for each in tree_leaves(launch.tensors))


def hot_bytes(launch: Launch, config: triton.Config | None, target: GPUTarget) -> dict[str, int]:
    """How many bytes a thread has to load at a time at least, by argument.

    That is 16, but where the threads of a program share rows of channels that are shorter. So it is for narrow blocks,
    for RoIAlign with few rows of bins, and in the gathers of gradients: a thread of RoIAlign's keeps eight sums for
    each of its channels and has four at most, as eight of 16 bits, which would be 16 bytes, spilled; RoIPool's has
    four, too.
    """
    if not launch.arguments.get("CHANNELS_LAST", True):
        return {}
    widths = dict.fromkeys(HOT_LOADS.get(launch.name, ()), HOT_BYTES)
    if config is not None and launch.name in ("gather_kernel", "_pool_kernel", "_source_kernel"):
        channels = config.kwargs["BLOCK_C"] // (target.warp_size * config.num_warps)
        for argument in widths:
            size = launch.tensors[launch.kernel.arg_names.index(argument)].element_size()
            widths[argument] = min(HOT_BYTES, size * max(channels, 1))
    if config is not None and launch.name == "_channels_last_kernel":
        (size,) = {each.element_size() for each in launch.tensors[0]}
        values = launch.arguments["BLOCK_H"] * config.kwargs["BLOCK_C"] // (target.warp_size * config.num_warps)
        widths = dict.fromkeys(widths, min(HOT_BYTES, size * max(values, 1)))
    return widths


def told(config: triton.Config | None) -> str:
    """A configuration for people."""
    if config is None:
        return "the only one"
    return ", ".join(f"{name} {value}" for name, value in config.all_kwargs().items())


def problems(demand: Demand, hot: Mapping[str, int], target: GPUTarget) -> Iterator[str]:
    """What must not be. Which argument a load is from is not known on AMD, where the widest have to be wide enough."""
    if demand.spilled:
        yield f"{demand.spilled} bytes or registers are spilled"
    if demand.registers > MOST_REGISTERS:
        yield f"{demand.registers} registers are more than {MOST_REGISTERS}"
    if target.backend == "hip":
        widest = max(demand.widths("load"), default=0)
        if widest < max(hot.values(), default=0):
            yield f"nothing is read more than {widest} bytes at a time, {', '.join(hot)} neither"
        return
    for argument, least in hot.items():
        loads = [each for each in demand.accesses if each.kind == "load" and argument in each.arguments]
        narrow = sorted({each.opcode for each in loads if each.bytes < least})
        if not loads:
            yield f"no load of {argument} is found"
        elif narrow:
            yield f"{argument} is read less than {least} bytes at a time: {', '.join(narrow)}"

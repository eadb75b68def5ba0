"""`python -m bench resources`: what every configuration of every kernel compiles to, for each target, with no GPU.

Registers, spills, shared memory, widths of loads and stores, form of atomics. Launches are those of the operations in
`bench.verification.operations`, at the sizes of the model's heads, and at larger ones where the code depends on them.

Loads are judged where a kernel's bytes are: rows of channels (`HOT_LOADS`), in channels-last layout, have to be read 16
bytes at a time by each thread, or less where the threads of a program have less of a row (`hot_bytes`): narrow blocks,
and gradients of 16 bits, 8 bytes a thread. Loads of the other kernels are shown and not judged, each for a reason in
`NOT_JUDGED`; nor are those of any kernel in contiguous layout, where what a thread reads of a map are single pixels
under its samples. In float64, which is for checking, kernels have to compile; what they take is shown and not judged.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget

import kernels
from bench.cache import cached
from bench.cases import Pyramid
from bench.compiled.launches import AMPERE, BLACKWELL, HOPPER, MI300, Launch, name_of, recorded, tuned_kernels
from bench.compiled.machine_code import Access, Demand, of_amd, of_nvidia
from bench.environment import environment
from bench.verification.case import results_of
from bench.verification.operations import OPERATIONS
from bench.verification.scenes import Scene
from bench.virtual_gpu.torch_operations import Watch

DTYPES = ("float32", "bfloat16", "float16", "float64")
TARGETS = {"sm_80": AMPERE, "sm_90": HOPPER, "sm_100": BLACKWELL, "gfx942": MI300}
MOST_REGISTERS = 128
HOT_BYTES = 16
WIDTH_WITHOUT_TERMINAL = 200
HERE = Path(__file__).parent
# What a row depends on besides the kernel.
SOURCES = (Path(__file__), HERE / "compiled", HERE / "virtual_gpu")

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

HEAD = Scene("box head", Pyramid(2, 128, 160, 256), 16, classes=80, mask_side=28, candidates=200)
ADAPTIVE = replace(HEAD, name="adaptive", sampling_ratio=-1, aligned=True)
SCENES = (HEAD, replace(HEAD, name="mask head", pooled=(14, 14)), ADAPTIVE)
# Sizes that some kernels' code depends on, up to the largest that one expects: a few boxes of one class, a list of all
# before it is split into segments, and masks of twice the side.
LISTS = tuple(replace(HEAD, name=f"{number:,} boxes", candidates=number) for number in (50, 100, 1_000, 6_000, 20_000))
# What takes configurations that 256 channels, or the heads' bins, do not.
OTHER_MAPS = {
    "multiscale_roi_align": (
        *(replace(HEAD, name=f"{each} channels", pyramid=Pyramid(2, 128, 160, each)) for each in (32, 64, 128)),
        *(replace(HEAD, name=f"{each} x {each} bins", pooled=(each, each)) for each in (2, 4)),
    ),
    "roi_pool": (replace(HEAD, name="512 channels", pyramid=Pyramid(2, 128, 160, 512)),),
    "mask_predict": tuple(
        replace(HEAD, name=f"{each} channels", pyramid=Pyramid(2, 128, 160, each)) for each in (16, 32)
    ),
}
LARGE_MASKS = tuple(replace(scene, name=f"{scene.name}, 56 x 56", mask_side=56) for scene in (HEAD, ADAPTIVE))


@dataclass(frozen=True)
class Arguments:
    """Compile every configuration of every kernel and say what it needs.

    Attributes:
        operation: only what these launch. kernel: only these.
        dtype: of the operations. target: to compile for.
        json: where to write every configuration.
        fresh: compile again what had no problem earlier with the same sources and versions.
    """

    operation: tuple[str, ...] = tuple(OPERATIONS)
    kernel: tuple[str, ...] = ()
    dtype: tuple[str, ...] = DTYPES
    target: tuple[str, ...] = tuple(TARGETS)
    json: Path | None = None
    fresh: bool = False


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


def main(arguments: list[str]) -> int:
    """`resources`; exit code 1 if anything has a problem, 2 for a wrong call."""
    try:
        chosen = tyro.cli(Arguments, prog="python -m bench resources", args=arguments)
    except SystemExit as end:  # help, or arguments that do not parse
        return end.code if isinstance(end.code, int) else 0
    if triton.knobs.runtime.interpret:
        return _refuse("kernels are compiled here: start the process without TRITON_INTERPRET=1")
    for what, asked, known in (
        ("operation", chosen.operation, tuple(OPERATIONS)),
        ("dtype", chosen.dtype, DTYPES),
        ("target", chosen.target, tuple(TARGETS)),
    ):
        if unknown := [each for each in asked if each not in known]:
            return _refuse(f"there is no {what} {unknown[0]!r}; there is {', '.join(known)}")
    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    rows, earlier = [], 0
    for row, remembered in compiled(chosen):
        rows.append(row)
        earlier += remembered
        for problem in row.problems:
            line = f"PROBLEM {row.kernel}, {row.target}, {row.config}, {row.launched_by}: {problem}"
            console.print(line, style="bold red", highlight=False, soft_wrap=True)
    if not rows:
        return _refuse("these operations launch none of these kernels")
    left_out = [] if picked(chosen) else never_compiled(rows)
    for each in left_out:
        console.print(f"PROBLEM {each} is compiled for nothing here", style="bold red", highlight=False, soft_wrap=True)
    console.print(
        f"{earlier} of {len(rows)} rows come from the disk: compiled earlier from the same sources and versions"
    )
    code = report(rows, console, chosen.json)
    return 1 if left_out else code


def picked(chosen: Arguments) -> bool:
    """Whether something is left out because it was not asked for."""
    return replace(chosen, json=None, fresh=False) != Arguments()


def never_compiled(rows: Sequence[Row]) -> list[str]:
    """Configurations of kernels in the rows that no row is about, on any target."""
    found = {(row.kernel, row.config) for row in rows}
    listed = {(name_of(kernel), _told(config)) for kernel in tuned_kernels() for config in kernel.configs}
    return [f"{name}, {config}" for name, config in sorted(listed - found)]


def _refuse(why: str) -> int:
    print(f"python -m bench resources: {why}", file=sys.stderr)
    return 2


def compiled(chosen: Arguments) -> Iterator[tuple[Row, bool]]:
    """A row for each different compilation, and whether it comes from the disk: never if it has a problem."""
    seen = set()
    for launched_by, launch in launches(chosen.operation, chosen.dtype):
        if chosen.kernel and launch.name not in chosen.kernel:
            continue
        for name in chosen.target:
            for config in launch.configs_on(TARGETS[name]):
                key = launch.specialize(config, TARGETS[name]).key
                if (launch.name, key) not in seen:
                    seen.add((launch.name, key))
                    # The key has a hash of the kernel's source. What is asked of its loads depends on the launch, too.
                    what = f"resources {launch.name} {key} {hot_bytes(launch, config, TARGETS[name])}"
                    make = partial(_examined, launch, launched_by, config, name)
                    made, remembered = cached(what, SOURCES, ("triton",), make, chosen.fresh, _has_no_problem)
                    yield _row({**made, "launched_by": launched_by}), remembered


def _examined(launch: Launch, launched_by: str, config: triton.Config | None, target: str) -> dict[str, Any]:
    return asdict(examine(launch, launched_by, config, target))


def _has_no_problem(made: Mapping[str, Any]) -> bool:
    return not made["problems"]


def _row(made: Mapping[str, Any]) -> Row:
    demand = made["demand"]
    if demand is not None:
        accesses = (Access(**{**each, "arguments": tuple(each["arguments"])}) for each in demand["accesses"])
        demand = Demand(**{**demand, "accesses": tuple(accesses)})
    return Row(**{**made, "demand": demand, "problems": tuple(made["problems"])})


def launches(operations: Sequence[str], dtypes: Sequence[str]) -> Iterator[tuple[str, Launch]]:
    """What operations launch forward and backward, and for what, in every layout, at the sizes of `scenes_of`."""
    for operation in operations:
        make, layouts = OPERATIONS[operation]
        for dtype in dtypes:
            for layout in layouts:
                for scene in scenes_of(operation):
                    problem = make(scene, getattr(torch, dtype), layout)
                    # Integers that no kernel writes are 0, so that they may be used as indices.
                    with kernels.use("triton"), Watch(lambda _: None, 0), recorded() as found:
                        results_of(problem, problem.call, problem.inputs, getattr(torch, dtype))
                    for launch in found:
                        yield f"{operation}, {dtype}, {layout}, {scene.name}", launch


def scenes_of(operation: str) -> tuple[Scene, ...]:
    """The sizes of the model's heads, and what else an operation is compiled for."""
    if operation.endswith("nms"):
        return SCENES + LISTS
    if operation.startswith("mask_loss"):
        return SCENES + LARGE_MASKS
    return SCENES + OTHER_MAPS.get(operation, ())


def examine(launch: Launch, launched_by: str, config: triton.Config | None, target: str) -> Row:
    """Compiles one configuration."""
    specialized = launch.specialize(config, TARGETS[target])
    told = "the only one" if config is None else _told(config)
    try:
        kernel = specialized.compile()
    except Exception as error:  # whatever the compiler raises is the finding
        problem = f"does not compile: {type(error).__name__}: {str(error).strip().splitlines()[-1:]}"
        return Row(launch.name, launched_by, told, target, None, (problem,))
    if TARGETS[target].backend == "hip":
        demand = of_amd(kernel)
    else:
        pointers = [name if isinstance(value, Tensor) else None for name, value in specialized.parameters()]
        demand = of_nvidia(kernel, pointers)
    if is_for_checking(launch):
        return Row(launch.name, launched_by, told, target, demand, (), checking=True)
    hot = hot_bytes(launch, config, TARGETS[target])
    return Row(launch.name, launched_by, told, target, demand, tuple(problems(demand, hot, TARGETS[target])))


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


def _told(config: triton.Config) -> str:
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


def report(rows: Sequence[Row], console: Console, file: Path | None) -> int:
    """Prints the table, writes the file; the exit code."""
    table = Table(title="The range over configurations, dtypes, layouts and sizes", title_justify="left")
    headings: dict[str, Callable[[Demand], Any]] = {
        "registers": lambda each: each.registers,
        "spilled": lambda each: each.spilled,
        "shared bytes": lambda each: each.shared,
    }
    for heading in ("kernel", "target", "compiled", *headings, "load bytes", "store bytes", "atomics", "problems"):
        table.add_column(heading)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.checking):
        kernel = f"{row.kernel}, float64" if row.checking else row.kernel
        groups.setdefault((kernel, row.target), []).append(row)
    for key, group in groups.items():
        demands = [row.demand for row in group if row.demand is not None]
        bad = sum(bool(row.problems) for row in group)
        table.add_row(
            *(*key, str(len(group))),
            *(_range([figure(each) for each in demands]) for figure in headings.values()),
            *(_all(width for each in demands for width in each.widths(kind)) for kind in ("load", "store")),
            "\n".join(sorted({form for each in demands for form in each.atomics})) or "none",
            str(bad) if bad else "none",
            style="bold red" if bad else None,
        )
    console.print(table)
    broken = sum(bool(row.problems) for row in rows)
    console.print(f"{len(rows)} compilations, {broken} with a problem")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**environment("none: compiled"), "rows": [asdict(row) for row in rows]}, indent=1))
    return 1 if broken else 0


def _range(values: Sequence[int]) -> str:
    if not values:
        return ""
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _all(widths: Iterator[int]) -> str:
    return " ".join(map(str, sorted(set(widths), reverse=True)))

"""`python -m bench resources`: what every configuration of every kernel compiles to, for each target, with no GPU.

Registers, spills, shared memory, widths of loads and stores, form of atomics. Launches are those of the operations in
`bench.verification.operations`, at the sizes of the model's heads, and at larger ones where the code depends on them.

`bench.compiled.examination` says what is a problem. What has none is kept on disk for as long as neither the kernel nor
what looks at it changes; `--fresh` compiles it again.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
import tyro
from rich.console import Console
from rich.table import Table

import kernels
from bench.cache import cached
from bench.cases import Pyramid
from bench.compiled.examination import TARGETS, Row, examine, hot_bytes, told
from bench.compiled.launches import Launch, name_of, recorded, tuned_kernels
from bench.compiled.machine_code import Access, Demand
from bench.environment import environment
from bench.processes import check_jobs, default_jobs, in_processes
from bench.verification.case import results_of
from bench.verification.operations import OPERATIONS
from bench.verification.scenes import Scene
from bench.virtual_gpu.torch_operations import Watch

DTYPES = ("float32", "bfloat16", "float16", "float64")
WIDTH_WITHOUT_TERMINAL = 200
HERE = Path(__file__).parent
# What a row depends on besides the kernel.
SOURCES = (HERE / "compiled", HERE / "virtual_gpu")
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
        jobs: processes that compile at once; as many as there are CPUs, up to 8.
    """

    operation: tuple[str, ...] = tuple(OPERATIONS)
    kernel: tuple[str, ...] = ()
    dtype: tuple[str, ...] = DTYPES
    target: tuple[str, ...] = tuple(TARGETS)
    json: Path | None = None
    fresh: bool = False
    jobs: int | None = None


@dataclass(frozen=True)
class Compiled:
    """A row; key: of what different rows are different compilations. remembered: whether it comes from the disk."""

    row: Row
    key: str
    remembered: bool


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
    try:
        check_jobs(chosen.jobs)
    except ValueError as error:
        return _refuse(str(error))
    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    rows, earlier = [], 0
    for name, new in compiled(chosen):
        rows += [each.row for each in new]
        earlier += sum(each.remembered for each in new)
        for row in (each.row for each in new):
            for problem in row.problems:
                line = f"PROBLEM {row.kernel}, {row.target}, {row.config}, {row.launched_by}: {problem}"
                console.print(line, style="bold red", highlight=False, soft_wrap=True)
        print(f"{name}: {counted(new)}", file=sys.stderr)  # it may take an hour
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
    return replace(chosen, json=None, fresh=False, jobs=None) != Arguments()


def never_compiled(rows: Sequence[Row]) -> list[str]:
    """Configurations of kernels in the rows that no row is about, on any target."""
    found = {(row.kernel, row.config) for row in rows}
    listed = {(name_of(kernel), told(config)) for kernel in tuned_kernels() for config in kernel.configs}
    return [f"{name}, {config}" for name, config in sorted(listed - found)]


def _refuse(why: str) -> int:
    print(f"python -m bench resources: {why}", file=sys.stderr)
    return 2


def counted(new: Sequence[Compiled]) -> str:
    """How many there are, for people."""
    remembered, broken = sum(each.remembered for each in new), sum(bool(each.row.problems) for each in new)
    return f"{len(new)} compilations, {remembered} of them from the disk, {broken} with a problem"


def compiled(chosen: Arguments) -> Iterator[tuple[str, list[Compiled]]]:
    """Operation and dtype, and what differs of what is compiled for them from all before."""
    picked = list(product(chosen.operation, chosen.dtype))
    found = in_processes(partial(compiled_for, chosen=chosen), picked, chosen.jobs or default_jobs())
    seen: set[str] = set()
    for (operation, dtype), some in zip(picked, found, strict=True):
        yield f"{operation}, {dtype}", [each for each in some if each.key not in seen]
        seen |= {each.key for each in some}


def compiled_for(operation: str, dtype: str, chosen: Arguments) -> list[Compiled]:
    """Each different compilation of what an operation launches; never from the disk if it has a problem."""
    found: dict[str, Compiled] = {}
    for launched_by, launch in launches([operation], [dtype]):
        if chosen.kernel and launch.name not in chosen.kernel:
            continue
        for name in chosen.target:
            for config in launch.configs_on(TARGETS[name]):
                key = f"{launch.name} {launch.specialize(config, TARGETS[name]).key}"
                if key not in found:
                    # The key has a hash of the kernel's source. What is asked of its loads depends on the launch, too.
                    what = f"resources {key} {hot_bytes(launch, config, TARGETS[name])}"
                    make = partial(_examined, launch, launched_by, config, name)
                    made, remembered = cached(what, SOURCES, ("triton",), make, chosen.fresh, _has_no_problem)
                    found[key] = Compiled(_row({**made, "launched_by": launched_by}), key, remembered)
    return list(found.values())


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

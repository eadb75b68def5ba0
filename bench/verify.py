"""`python -m bench verify`: every operation, dtype, layout and shape; Triton, eager, reference and torchvision.

Results are compared by `bench.error_rule`. On the virtual GPU each case also reports accesses out of bounds or
misaligned, races, memory that nobody wrote, and results that depend on the order of warps. A case whose kernels have
approximate instructions (exp, and division where rounding does not matter) runs at both ends of their documented
error, too: selections must not change, a score of -inf among them, and what values do is told beside.

A case that held is kept on disk for as long as no source and no version changes; `--fresh` verifies it again. A breach
is never kept, nor is what a real GPU did.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import processes
from bench.environment import environment
from bench.processes import check_jobs, in_processes
from bench.verification.case import Finding
from bench.verification.operations import OPERATIONS
from bench.verification.outcomes import Outcome, verify_one
from bench.verification.places import Place, environment_for, place, whatever_is_there
from bench.verification.scenes import Scene, scenes

DTYPES = ("float32", "float16", "bfloat16", "float64")
LAYOUTS = ("channels last", "contiguous", "blocks")
SIDES = ("triton", "eager", "reference", "torchvision")
WIDTH_WITHOUT_TERMINAL = 160


@dataclass(frozen=True)
class Arguments:
    """Verify operations: Triton, eager, reference and torchvision, by the error rule.

    Attributes:
        on: where the Triton kernels run; auto takes a GPU, else the virtual GPU, else the interpreter.
        operation: only these. dtype: only these. layout: only these. shape: only these, by name.
        json: where to write every case.
        fresh: verify again what held earlier with the same sources and versions.
        jobs: processes that verify at once; as many as there are CPUs, up to 8, but one on a GPU.
    """

    on: Literal["auto", "interpreter", "virtual", "gpu"] = "auto"
    operation: tuple[str, ...] = ()
    dtype: tuple[str, ...] = ()
    layout: tuple[str, ...] = ()
    shape: tuple[str, ...] = ()
    json: Path | None = None
    fresh: bool = False
    jobs: int | None = None


def main(arguments: list[str]) -> int:
    """`verify`; exit code 1 on any breach, 2 for a wrong call."""
    try:
        chosen = tyro.cli(Arguments, prog="python -m bench verify", args=arguments)
    except SystemExit as end:  # help, or arguments that do not parse
        return end.code if isinstance(end.code, int) else 0
    where = whatever_is_there() if chosen.on == "auto" else chosen.on
    needed = environment_for(where)
    if needed is not None:
        command = [sys.executable, "-m", "bench", "verify", *arguments, "--on", where]
        return subprocess.run(command, env=needed, check=False).returncode
    try:
        here = place(where)
        picked = pick(chosen, here)
    except (RuntimeError, ValueError) as error:
        print(f"python -m bench verify: {error}", file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    cases = []
    done = verified(picked, here, chosen.jobs or default_jobs(where), chosen.fresh)
    for case in track(done, "verifying", len(picked), console=console, disable=not console.is_terminal):
        cases.append(case)
        for breach in case.breaches:
            line = f"BREACH {case.name}: {told(breach)}"
            console.print(line, style="bold red", highlight=False, soft_wrap=True)
        last = len(cases) == len(picked) or picked[len(cases)][0] != case.operation
        if last and not console.is_terminal:  # where there is no bar: it may take an hour
            print(summary([each for each in cases if each.operation == case.operation]), file=sys.stderr)
    return report(cases, where, environment(here.describe()), console, chosen.json)


def summary(cases: Sequence[Outcome]) -> str:
    """One line on the cases of an operation."""
    return f"{cases[0].operation}: {counted(cases)} of a process"


def counted(cases: Sequence[Outcome]) -> str:
    """How many there are, and what they cost in this run."""
    broken, remembered = sum(bool(case.breaches) for case in cases), sum(case.remembered for case in cases)
    seconds = sum(case.seconds for case in cases if not case.remembered)
    return f"{len(cases)} cases, {remembered} of them from the disk, {broken} with a breach, {seconds:.0f} s"


def pick(chosen: Arguments, here: Place) -> list[tuple[str, str, str, Scene]]:
    """Operation, dtype, layout and shape of all cases that are asked for.

    Raises:
        ValueError: something that is asked for does not exist.
    """
    shapes = {scene.name: scene for scene in scenes(here.size)}
    operations = _pick("operation", chosen.operation, tuple(OPERATIONS))
    dtypes = _pick("dtype", chosen.dtype, DTYPES)
    layouts = _pick("layout", chosen.layout, LAYOUTS)
    names = _pick("shape", chosen.shape, tuple(shapes))
    check_jobs(chosen.jobs)
    picked = [
        (operation, dtype, layout, shapes[name])
        for operation in operations
        for dtype in dtypes
        for layout in OPERATIONS[operation][1]
        if layout in layouts
        for name in names
    ]
    if not picked:
        raise ValueError("no operation of those has one of these layouts")
    return picked


def default_jobs(where: str) -> int:
    return 1 if where == "gpu" else processes.default_jobs()


def verified(
    picked: Sequence[tuple[str, str, str, Scene]], here: Place, jobs: int, fresh: bool = False
) -> Iterator[Outcome]:
    """The cases in their order, by processes if there are to be several."""
    return in_processes(partial(verify_one, here=here, fresh=fresh), picked, jobs)


def _pick(what: str, asked: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [each for each in asked if each not in known]
    if unknown:
        raise ValueError(f"there is no {what} {unknown[0]!r} here; there is {', '.join(known)}")
    return tuple(asked) or known


def told(finding: Finding) -> str:
    """A finding for people."""
    where = ", ".join(part for part in (finding.side, finding.output, finding.run) if part)
    return f"{where}: {finding.comparison}"


def report(cases: Sequence[Outcome], where: str, made_with: dict[str, str], console: Console, file: Path | None) -> int:
    """Prints the table, writes the file; the exit code."""
    console.print(_table(cases, made_with["device"]))
    broken = [case for case in cases if case.breaches]
    console.print(f"on {where}: {counted(cases)}")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"on": where, **made_with, "cases": [_row(case) for case in cases]}, indent=1))
    return 1 if broken else 0


def _table(cases: Sequence[Outcome], device: str) -> Table:
    table = Table(title=f"Largest error as a share of what is allowed, on {device}", title_justify="left")
    for heading in ("operation", "dtype", "layout", "cases"):
        table.add_column(heading)
    for side in SIDES:
        table.add_column(side, justify="right")
    table.add_column("triton, approximations at an end", justify="right")
    table.add_column("holds")
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for case in cases:
        groups.setdefault((case.operation, case.dtype, case.layout), []).append(case)
    for key, group in groups.items():
        holds = not any(case.breaches for case in group)
        shares = [_share([case.share(side) for case in group]) for side in SIDES]
        shares.append(_share([case.share("triton", binding=False) for case in group]))
        table.add_row(*key, str(len(group)), *shares, "yes" if holds else "NO", style=None if holds else "bold red")
    return table


def _share(shares: Sequence[float | None]) -> str:
    known = [each for each in shares if each is not None]
    if not known:
        return ""
    worst = max(known)
    return "exact" if worst == 0 else "wrong" if math.isinf(worst) else f"{worst:.2f}"


def _row(case: Outcome) -> dict[str, object]:
    findings = [
        {
            "side": each.side,
            "output": each.output,
            "run": each.run,
            "holds": each.holds,
            "binding": each.binding,
            "wrong": each.comparison.wrong,
            "errors": [asdict(norm) for norm in each.comparison.norms],
        }
        for each in case.findings
    ]
    named = {name: getattr(case, name) for name in ("operation", "dtype", "layout", "shape", "seconds", "remembered")}
    return {**named, "holds": not case.breaches, "findings": findings}

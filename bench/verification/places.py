"""Where the Triton kernels run when they are verified: interpreted, compiled on the virtual GPU, or on a real one."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

import kernels
from bench.verification.scenes import Size

if TYPE_CHECKING:
    from bench.virtual_gpu import Options

Results = dict[str, Tensor]
Compute = Callable[[], Results]
Name = Literal["interpreter", "virtual", "gpu"]
# Bytes that memory is filled with when it is allocated: where two runs leave two of them, nobody wrote.
PATTERNS = (0xA5, 0x5A)
FAULTS_TOLD = 3


@dataclass
class Seen:
    """Results of each run that counts as one of its own, by what sets the run apart, and what went wrong besides."""

    runs: dict[str, Results] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Place(Protocol):
    """Where kernels run. size: of the shapes that are bearable there. device: that inputs are moved to."""

    @property
    def size(self) -> Size: ...

    @property
    def device(self) -> str: ...

    def describe(self) -> str:
        """The device, for people."""

    def run(self, compute: Compute) -> Seen:
        """Runs what launches Triton kernels as often as it takes."""


def place(name: Name) -> Place:
    """A place by its name.

    Raises:
        RuntimeError: it is not here.
    """
    if name == "gpu":
        return Gpu()
    return Interpreter() if name == "interpreter" else VirtualGpu()


def whatever_is_there() -> Name:
    """A real GPU, or the virtual one where there is a C++ compiler, or the interpreter."""
    if torch.cuda.is_available():
        return "gpu"
    from bench.virtual_gpu import has_compiler

    return "virtual" if has_compiler() else "interpreter"


def environment_for(name: Name) -> dict[str, str] | None:
    """The environment that a process needs for a place, None if it is this one's: whether kernels are interpreted is
    settled when they are imported."""
    interpreting = os.environ.get("TRITON_INTERPRET", "0") == "1"
    if interpreting == (name == "interpreter"):
        return None
    return {**os.environ, "TRITON_INTERPRET": "0" if interpreting else "1"}


class Interpreter:
    """Triton's interpreter. Unwritten memory shows as NaN, or as a number that no result has."""

    size: Size = "tiny"
    device = "cpu"

    def describe(self) -> str:
        return "Triton's interpreter"

    def run(self, compute: Compute) -> Seen:
        from bench.verification.interpreter import quick_interpreter
        from bench.virtual_gpu import unwritten
        from bench.virtual_gpu.torch_operations import Watch

        with warnings.catch_warnings(), kernels.use("triton"), quick_interpreter(), Watch(lambda _: None, PATTERNS[0]):
            warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy, on NaN and infinite boxes
            results = compute()
        never = {name: unwritten(each, PATTERNS[0]) for name, each in results.items() if each.dtype.is_floating_point}
        return Seen({"": results}, _told_unwritten(never))


class VirtualGpu:
    """Compiled for an H100 and executed on the CPU: under several orders of warps, whose results must have the same
    bits, and with approximate instructions, if there are any, at both ends of their error."""

    size: Size = "small"
    device = "cpu"

    def __init__(self) -> None:
        from bench.virtual_gpu import has_compiler

        if not has_compiler():
            raise RuntimeError("the virtual GPU needs a C++ compiler, g++ or clang++; or take --on interpreter")

    def describe(self) -> str:
        from bench.virtual_gpu import H100

        return f"virtual {H100.name}"

    def run(self, compute: Compute) -> Seen:
        from bench.virtual_gpu import Options, interleavings, unwritten

        seen = Seen()
        approximate = False
        runs: list[tuple[Options, Results]] = []
        never: dict[str, Tensor] = {}
        for options, pattern in zip(interleavings(Options(caches=False)), cycle(PATTERNS), strict=False):
            results, approximates = self._once(compute, options, pattern, seen)
            approximate |= approximates
            runs.append((options, results))
            for name, each in results.items():
                untouched = unwritten(each, pattern)
                never[name] = never[name] & untouched if name in never else untouched
        (_, first), *others = runs
        for options, results in others:
            order = f"quantum {options.quantum}{', reversed' if options.reverse else ''}"
            seen.faults += [
                f"{name}: {number} elements depend on the order of warps ({order})"
                for name, number in different_bits(first, results, but=never).items()
            ]
        seen.faults += _told_unwritten(never)
        seen.runs[""] = first
        ends: tuple[Literal["low", "high"], ...] = ("low", "high") if approximate else ()
        for rounding in ends:
            results, _ = self._once(compute, Options(rounding=rounding, caches=False), PATTERNS[0], seen)
            seen.runs[f"approximate instructions at their {rounding} end"] = results
        return seen

    def _once(self, compute: Compute, options: "Options", pattern: int, seen: Seen) -> tuple[Results, bool]:
        """Results, and whether an approximate instruction ran."""
        from bench.virtual_gpu import active

        with kernels.use("triton"), active(options=options, check=False, pattern=pattern) as record:
            results = compute()
        if not seen.faults:
            faults = [f"{launch.kernel}: {fault}" for launch in record.launches for fault in launch.launch.faults]
            seen.faults += faults[:FAULTS_TOLD]
        return results, any(launch.launch.approximate for launch in record.launches)


class Gpu:
    """A real GPU, twice: all kernels are to give the same bits at each run."""

    size: Size = "full"
    device = "cuda"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("there is no GPU here that PyTorch can use; take --on virtual or --on interpreter")

    def describe(self) -> str:
        return torch.cuda.get_device_name()

    def run(self, compute: Compute) -> Seen:
        with kernels.use("triton"):
            first, second = compute(), compute()
        faults = [
            f"{name}: {number} elements differ from one run to the next"
            for name, number in different_bits(first, second).items()
        ]
        return Seen({"": first}, faults)


def different_bits(first: Results, second: Results, but: Results | None = None) -> dict[str, int]:
    """How many elements of each result, `but` some, differ in any bit, where any do; different shapes count as one."""
    counts = {}
    for name, one in first.items():
        other = second[name]
        if one.shape != other.shape:
            counts[name] = 1
            continue
        words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
        differs = one.view(words) != other.view(words)
        if but is not None:
            differs &= ~but[name]
        if number := int(differs.sum()):
            counts[name] = number
    return counts


def _told_unwritten(never: dict[str, Tensor]) -> list[str]:
    return [
        f"{name}: {int(each.sum())} of {each.numel()} elements were not written, the first at "
        f"{torch.nonzero(each)[0].tolist()}"
        for name, each in never.items()
        if bool(each.any())
    ]

"""Work spread over processes of a thread each."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

MOST_JOBS = 8  # a process takes a gigabyte
Result = TypeVar("Result")


def default_jobs() -> int:
    """As many processes as there are CPUs, up to 8."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, MOST_JOBS)


def check_jobs(jobs: int | None) -> None:
    """Of a command's `--jobs`; None is what was not given.

    Raises:
        ValueError: it is less than 1.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs is {jobs}; it must be 1 or more")


def in_processes(function: Callable[..., Result], arguments: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[Result]:
    """`function(*each)` of all arguments, in their order; in this process if there is nothing to do at once."""
    if min(jobs, len(arguments)) <= 1:
        yield from (function(*each) for each in arguments)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(function, *zip(*arguments, strict=True))

"""`pytest bench --benchmark-only`: the cases of `python -m bench kernels` under pytest-benchmark.

Eager beside torchvision on the CPU; with a GPU, every provider of `bench.kernel_figures.times`. `make test` does
not come here.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import pytest
import torch

from bench import cpu_operations
from bench.kernel_figures import times as kernel_times
from bench.kernel_figures.cases import OPERATIONS, Case, both, cases
from bench.kernel_figures.checks import check
from bench.kernel_figures.times import WARM_UP, rounds_of
from bench.kernels import CPU_PAIRS

NAMES = tuple(dict.fromkeys(name for names in CPU_PAIRS.values() for name in names))
# Those whose cases are timed on the CPU, since NAMES has nothing of them.
CPU_OPERATIONS = [name for name in OPERATIONS if name not in CPU_PAIRS]
PROVIDERS = ("ours", "torchvision", "eager", "torch.compile of eager")
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="times of the CPU are for machines without a GPU")


@cache
def checked_pair(name: str) -> cpu_operations.Functions:
    """Both functions of a pair, once their results agree."""
    functions = cpu_operations.pairs()[name]
    cpu_operations.check(name, functions)
    return functions


@lru_cache(maxsize=1)  # inputs of some cases are large
def checked_case(case: Case) -> cpu_operations.Functions:
    """The same of a case."""
    functions = cpu_operations.of_case(case)
    check(case, functions.ours())
    return functions


@on_cpu
@pytest.mark.parametrize("by", ["ours", "torchvision"])
@pytest.mark.parametrize("name", NAMES)
def test_cpu(benchmark: Callable[..., Any], name: str, by: str) -> None:
    benchmark.group = name  # type: ignore[attr-defined]
    functions = checked_pair(name)
    benchmark(functions.ours if by == "ours" else functions.torchvision)


def case_name(case: Case) -> str:
    return f"{case.name}, {case.dtype_name} {case.layout}"


@on_cpu
@pytest.mark.parametrize("by", ["ours", "torchvision"])
@pytest.mark.parametrize("case", list(cases(operations=CPU_OPERATIONS, dtypes=[torch.float32])), ids=case_name)
def test_cpu_case(benchmark: Callable[..., Any], case: Case, by: str) -> None:
    """Forward and, where it has gradients, backward."""
    benchmark.group = case_name(case)  # type: ignore[attr-defined]
    functions = checked_case(case)
    benchmark(functions.ours if by == "ours" else functions.torchvision)


@pytest.mark.gpu
@pytest.mark.parametrize("by", PROVIDERS)
@pytest.mark.parametrize("case", list(cases()), ids=case_name)
def test_gpu(benchmark: Callable[..., Any], case: Case, by: str) -> None:
    """Until the results are there, forward and backward, inputs in turns and the cache swept before each call."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    benchmark.group = case_name(case)  # type: ignore[attr-defined]
    clock = kernel_times.CudaClock()
    provider = next(each for each in kernel_times.providers(case) if each.name == by)
    benchmark.extra_info["computed in"] = f"{provider.dtype} {provider.layout}"  # type: ignore[attr-defined]
    turns = kernel_times.on_device(provider.inputs(), clock)
    number = 0

    def step() -> tuple[torch.Tensor, ...]:
        nonlocal number
        number += 1
        results = both(provider.function, turns[number % len(turns)])
        torch.cuda.synchronize()
        return results

    def sweep() -> None:
        clock.sweep_cache()
        torch.cuda.synchronize()

    with provider.active():
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            provider.check(case, step())
        rounds = rounds_of(max(clock.to_end(step) for _ in range(WARM_UP)))
        benchmark.pedantic(step, setup=sweep, rounds=rounds)  # type: ignore[attr-defined]

"""Every row of counts, made now or kept from an earlier run of the same sources."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench.cache import cached
from bench.cases import Workload
from bench.kernel_figures.cases import WITH_BARS, cases
from bench.kernel_figures.checks import WrongResult
from bench.kernel_figures.counts import count
from bench.kernel_figures.mask_predict_counts import count_mask_predict_loss
from bench.kernel_figures.torchvision_counts import count_torchvision
from bench.results import Row
from bench.virtual_gpu import VirtualGpuError

HERE = Path(__file__).parent
BENCH = HERE.parent
ROOT = BENCH.parent
# What counts depend on: torchvision's, and ours besides.
SOURCES = [
    *(BENCH / name for name in ("virtual_gpu", "cases.py", "error_rule.py")),
    *(HERE / name for name in ("cases", "checks.py", "torchvision_counts.py")),
]
OUR_SOURCES = [
    *SOURCES,
    *(HERE / name for name in ("counts.py", "mask_predict_counts.py")),
    *(BENCH / name for name in ("peers/masks.py", "peers/operations.py", "verification/scenes.py")),
    *(ROOT / name for name in ("kernels", "mrcnn/anchors.py")),
]
PACKAGES = ("torch", "torchvision", "triton")


def every(
    operations: Sequence[str],
    dtypes: Sequence[torch.dtype],
    seeds: Sequence[int],
    workload: Workload,
    wrong: list[str],
    fresh: bool = False,
) -> Iterator[tuple[Row, bool]]:
    """All rows, torchvision's before ours, and whether each comes from the disk (never if `fresh`).

    Counts do not depend on the machine, so they are kept for as long as no source and no version changes. What is wrong
    is told in `wrong` and has no row.
    """
    jobs: list[tuple[str, list[Path], Callable[[], list[Row]]]] = []
    for operation in (each for each in operations if each in WITH_BARS):
        for size in (7, 14) if operation == "roi_align" else (0,):
            for seed in seeds:
                theirs = partial(count_torchvision, operation, size, seed, workload)
                jobs.append((f"torchvision {operation} {size} {seed} {workload}", SOURCES, theirs))
    for case in cases(seeds, operations, dtypes, workload):
        jobs.append((f"{case} {workload}", OUR_SOURCES, partial(count, case)))
    if "mask_loss" in operations:
        for dtype, seed in product(dtypes, seeds):
            ours = partial(_mask_predict_loss, dtype, seed, workload)
            jobs.append((f"mask_predict_loss {dtype} {seed} {workload}", OUR_SOURCES, ours))
    for name, sources, make in jobs:
        try:
            made, remembered = cached(name, sources, PACKAGES, partial(_as_dicts, make), fresh)
        except (WrongResult, VirtualGpuError) as error:
            wrong.append(str(error))
            continue
        yield from ((Row(**row), remembered) for row in made)


def _mask_predict_loss(dtype: torch.dtype, seed: int, workload: Workload) -> list[Row]:
    return [count_mask_predict_loss(dtype, seed, workload)]


def _as_dicts(make: Callable[[], list[Row]]) -> list[dict[str, Any]]:
    return [asdict(row) for row in make()]

"""`python -m bench kernels`: our kernels beside torchvision's, once each result is known to be right.

On a GPU, times. On the virtual one (`--on virtual`, and where there is no other) counts and lower bounds of time,
beside torchvision's own float32 kernels there and beside what was asked, and CPU times of the eager operations beside
torchvision's. Of operations other than roi_align, segmented_nms and mask_loss there is no count of torchvision's; some
take the virtual GPU minutes.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from bench import cpu_operations, results
from bench.bars import Seen, of_pairs
from bench.cases import FULL, QUICK
from bench.cpu_operations import Pair
from bench.environment import environment
from bench.kernel_figures import bars as kernel_bars
from bench.kernel_figures import counts as kernel_counts
from bench.kernel_figures import rows as kernel_rows
from bench.kernel_figures import times as kernel_times
from bench.kernel_figures.cases import OPERATIONS, WITH_BARS, cases
from bench.kernel_figures.checks import WrongResult
from bench.results import Row

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Those of the bars; of other operations their cases are timed.
CPU_PAIRS = {
    "roi_align": ["RoIAlign 7x7, forward", "RoIAlign 14x14, forward", "RoIAlign 7x7, forward and backward"],
    "segmented_nms": ["batched_nms of 5 x 2,000 boxes"],
    "batched_nms": ["batched_nms of 5 x 2,000 boxes"],
    "mask_loss": ["paste of 100 masks into 800 x 1333"],  # of the mask branch, too
    "paste_masks": ["paste of 100 masks into 800 x 1333"],
}


def main(arguments: list[str]) -> int:
    """Exit code 1 if a result is wrong or a bar is not met, 2 for a wrong call."""
    picks = parse(arguments)
    wrong: list[str] = []
    rows, lines = times(picks, wrong) if picks.on == "gpu" else counts(picks, wrong)
    for each in lines:
        print(f"{'holds' if each.holds else 'FAILS'}  {each.what:82s} {each.asked:>26s}  {each.seen}")
    for message in wrong:
        print(f"WRONG, and so not shown: {message}")
    device = torch.cuda.get_device_name() if picks.on == "gpu" else "virtual H100 (sm_90)"
    found, folder = results.Results(environment(device), rows), Path(picks.out)
    results.write_json(folder / "kernels.json", found)
    results.write_csv(folder / "kernels.csv", found)
    print(", ".join(f"{name} {value}" for name, value in found.environment.items()))
    print(f"{len(rows)} rows in {folder / 'kernels.json'} and kernels.csv")
    if picks.plot:
        from bench.plots import plot  # matplotlib is an extra

        plot(found, folder / "kernels.png")
        print(f"picture in {folder / 'kernels.png'}")
    return 1 if wrong or not all(line.holds for line in lines) else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What was picked; exits with 2 if it cannot be had."""
    there = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m bench kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = "a GPU if there is one, if not given"
    parser.add_argument("--on", choices=["gpu", "virtual"], default="gpu" if there else "virtual", help=where)
    told = f"if not given all on a GPU, and on the virtual one {', '.join(WITH_BARS)}"
    parser.add_argument("--operation", nargs="+", choices=list(OPERATIONS), help=told)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[4, 5, 6], help="of the RoIs")
    parser.add_argument("--quick", action="store_true", help="a small workload; neither bars nor CPU times")
    parser.add_argument("--fresh", action="store_true", help="count again what was counted before")
    parser.add_argument("--plot", action="store_true", help="a picture beside the files; needs matplotlib")
    parser.add_argument("--out", default="runs/kernels", help="folder for kernels.json and kernels.csv")
    picks = parser.parse_args(arguments)
    if picks.on == "gpu" and not there:
        parser.error("there is no GPU here that PyTorch can use; take --on virtual")
    if picks.operation is None:
        picks.operation = list(OPERATIONS if picks.on == "gpu" else WITH_BARS)
    return picks


def counts(picks: argparse.Namespace, wrong: list[str]) -> tuple[list[Row], list[Seen]]:
    """Rows of the virtual GPU and of the CPU, and what was asked beside what is seen; appends to `wrong`."""
    print("Counts and lower bounds of time on the virtual GPU (no times), each once its result is known to be right.")
    print(HEADINGS)
    rows: list[Row] = []
    earlier = 0
    workload = QUICK if picks.quick else FULL
    dtypes = [DTYPES[name] for name in picks.dtype]
    for row, remembered in kernel_rows.every(picks.operation, dtypes, picks.seeds, workload, wrong, picks.fresh):
        rows.append(kernel_bars.with_ratios(row, rows))
        earlier += remembered
        print(line(rows[-1]), flush=True)
    print(f"{earlier} of {len(rows)} rows come from the disk: counted earlier from the same sources and versions")
    if picks.quick:
        return rows, []
    lines = kernel_bars.seen(rows)
    if "float32" not in picks.dtype:
        return rows, lines
    print("CPU times: ours, eager, and torchvision's")
    for name, measure in cpu_pairs(picks.operation).items():
        try:
            pair = measure()
        except WrongResult as error:
            wrong.append(str(error))
            continue
        lines += of_pairs([pair])
        figures = {"ms": 1e3 * pair.ours, "torchvision, ms": 1e3 * pair.torchvision, "times as fast": pair.speedup}
        rows.append(Row(name, "float32", "any", 4, "ours, eager on the CPU", "", figures))
        print(f"{name:76s}" + ", ".join(f"{figure} {value:.4g}" for figure, value in figures.items()), flush=True)
    return rows, lines


def cpu_pairs(operations: Sequence[str]) -> dict[str, Callable[[], Pair]]:
    """What times ours beside torchvision's on the CPU, by name."""
    found: dict[str, Callable[[], Pair]] = {}
    for operation in operations:
        if operation in CPU_PAIRS:
            found |= {name: partial(_only_pair, name) for name in CPU_PAIRS[operation]}
        else:
            own = cases((4,), [operation], [torch.float32])
            found |= {case.name: partial(cpu_operations.measure_case, case) for case in own}
    return found


def _only_pair(name: str) -> Pair:
    (pair,) = cpu_operations.measure(names=[name])
    return pair


def times(picks: argparse.Namespace, wrong: list[str]) -> tuple[list[Row], list[Seen]]:
    """Rows of this machine's GPU; appends to `wrong`."""
    rows = []
    dtypes = [DTYPES[name] for name in picks.dtype]
    clock = kernel_times.CudaClock()
    bandwidth = kernel_times.copy_bandwidth(clock)
    print(f"copies move {bandwidth / 1e9:.0f} GB/s here; times are medians, each once its result is known to be right")
    peers: dict[tuple[str, int], Row] = {}  # by case and seed: torchvision computes in one dtype, whatever ours is
    asked_of_peer = set()
    for case in cases(picks.seeds, picks.operation, dtypes, QUICK if picks.quick else FULL):
        for provider in kernel_times.providers(case):
            if provider.name == "torchvision":
                if (case.name, case.seed) in asked_of_peer:
                    continue
                asked_of_peer.add((case.name, case.seed))
            try:
                made = kernel_times.time_case(case, provider, clock, bandwidth)
            except WrongResult as error:
                wrong.append(f"{provider.name}: {error}")
                continue
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                print(f"{case.name}, {case.dtype_name}: no {provider.name}, {str(error).splitlines()[0]}", flush=True)
                continue
            rows += made
            for row in made:
                if provider.name == "torchvision":
                    peers[row.case, row.seed] = row
                elif (row.case, row.seed) in peers:
                    row.figures[kernel_bars.TIME] = row.figures["us"] / peers[row.case, row.seed].figures["us"]
                figures = ", ".join(f"{name} {value:.4g}" for name, value in row.figures.items())
                print(f"{row.name:96s} {figures}", flush=True)
    return rows, []


COLUMNS = {
    "time bound, us": ("us", "9.1f"),
    kernel_bars.TIME: ("ratio", "7.3f"),
    "M instructions": ("M instr", "9.2f"),
    "M L1 lines": ("M lines", "8.2f"),
    "DRAM / least": ("DRAM/least", "11.3f"),
    "M atomic sectors": ("M atomics", "10.2f"),
    "longest warp": ("longest", "8.0f"),
    "registers": ("regs", "5.0f"),
    "launches": ("launches", "9.0f"),
    "PyTorch operations": ("torch ops", "10.0f"),
    "PyTorch, MB": ("their MB", "9.2f"),
}
HEADINGS = f"{'':76s}" + "".join(f"{heading:>{int(form.split('.')[0])}s}" for heading, form in COLUMNS.values())


def line(row: Row) -> str:
    """The figures that matter most, in columns."""
    name = f"{row.case}, {row.dtype} {row.layout}, seed {row.seed}"
    name = name if row.by == kernel_counts.OURS else f"  {row.by.split(',')[0]}: {name}"
    cells = [
        f"{row.figures[figure]:{form}}" if figure in row.figures else " " * int(form.split(".")[0])
        for figure, (_, form) in COLUMNS.items()
    ]
    return f"{name:76s}" + "".join(cells)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

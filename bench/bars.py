"""The long measurements: what was asked, beside what is seen on this machine in this run."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench import cpu_operations
from bench.kernel_figures.cases import OPERATIONS, WITH_BARS
from bench.model import overfit, speed
from bench.test_data import TEST_DATA


@dataclass(frozen=True)
class Seen:
    """One line of a bar."""

    what: str
    asked: str
    seen: str
    holds: bool


def demo() -> list[Seen]:
    """The demo, three seeds."""
    lines = []
    for seed in range(3):
        with tempfile.TemporaryDirectory() as out:
            seconds = _mrcnn("demo", "--out", out, "--seed", str(seed))
            figures = json.loads((Path(out) / "metrics.json").read_text())
        ap = figures["segm"]["AP"]
        lines.append(Seen(f"seed {seed}: mask AP", "at least 0.60", f"{ap:.3f}", ap >= 0.60))
        lines.append(Seen(f"seed {seed}: wall time", "under 120 s", f"{seconds:.0f} s", seconds < 120))
    return lines


def microscopy() -> list[Seen]:
    """Training on 100 microscopy images, evaluation on 30."""
    data = TEST_DATA / "dsb-mini"
    with tempfile.TemporaryDirectory() as out:
        folder, figures = Path(out), Path(out) / "figures.json"
        seconds = _mrcnn(
            *("train", str(data / "train.json"), "--out", out, "--val", str(data / "val.json")),
            *("--augment", "overhead"),
        )
        _mrcnn(
            *("eval", str(folder / "checkpoint.safetensors"), str(data / "val.json")),
            *("--max-dets", "300", "--json", str(figures)),
        )
        ap = json.loads(figures.read_text())["AP"]
    return [
        Seen("mask AP, 300 detections", "at least 0.45", f"{ap:.3f}", ap >= 0.45),
        Seen("training and evaluation", "within 240 s", f"{seconds:.0f} s", seconds <= 240),
    ]


def photos() -> list[Seen]:
    """Eight photos by heart, and the time of the same steps in torchvision."""
    result = overfit.measure(TEST_DATA / "tiny-coco")
    share = result.step_seconds / result.peer_step_seconds
    timing = f"{result.step_seconds:.2f} s and {result.peer_step_seconds:.2f} s: {share:.2f}"
    return [
        Seen("mask AP on the 8 photos", "at least 0.65", f"{result.ap:.3f}", result.ap >= 0.65),
        Seen("mask AP50", "at least 0.95", f"{result.ap50:.3f}", result.ap50 >= 0.95),
        Seen(
            f"a step: mean of our {overfit.STEPS}, and of torchvision's {overfit.PEER_STEPS}",
            "at most 0.5 of the time",
            timing,
            share <= 0.5,
        ),
    ]


def evaluator() -> list[Seen]:
    """The figures that COCO publishes for its example results."""
    data = TEST_DATA / "coco-eval"
    expected = json.loads((data / "expected.json").read_text())
    lines = []
    for iou_type in ("bbox", "segm"):
        with tempfile.TemporaryDirectory() as out:
            figures = Path(out) / "figures.json"
            _mrcnn(
                *("eval", "--annotations", str(data / "instances_val2014_100.json")),
                *("--results", str(data / f"instances_val2014_fake{iou_type}100_results.json")),
                *("--iou-type", iou_type, "--json", str(figures)),
            )
            seen = json.loads(figures.read_text())
        worst = max(abs(seen[name] - value) for name, value in zip(expected["order"], expected[iou_type], strict=True))
        lines.append(
            Seen(f"12 figures for {iou_type}", "equal to 1e-9", f"largest difference {worst:.1e}", worst <= 1e-9)
        )
    return lines


def inference() -> list[Seen]:
    """Inference of R50-FPN on one image of 800 x 1088, the same weights in both."""
    seconds = speed.inference(TEST_DATA / "tiny-coco")
    ours = seconds.pop("ours")
    fastest = min(seconds, key=lambda name: seconds[name])
    ratio = ours / seconds[fastest]
    text = f"{ours:.2f} s and {seconds[fastest]:.2f} s ({fastest}): {ratio:.2f}"
    return [Seen("ours and torchvision's fastest setting", "at most 1 of its time", text, ratio <= 1)]


def operations() -> list[Seen]:
    """Eager operations on the CPU beside torchvision's, in one run."""
    return of_pairs(cpu_operations.measure())


def of_pairs(pairs: Sequence[cpu_operations.Pair]) -> list[Seen]:
    """A line for each operation that was timed and of which a speed is asked."""
    asked = {
        "RoIAlign 7x7, forward": 8,
        "RoIAlign 14x14, forward": 8,
        "RoIAlign 7x7, forward and backward": 7,
        "batched_nms of 5 x 2,000 boxes": 2,
        "paste of 100 masks into 800 x 1333": 5,
    }
    return [
        Seen(
            pair.name,
            f"at least {asked[pair.name]} times as fast",
            f"{pair.ours * 1e3:.1f} ms and {pair.torchvision * 1e3:.1f} ms: {pair.speedup:.1f}",
            pair.speedup >= asked[pair.name],
        )
        for pair in pairs
        if pair.name in asked
    ]


def verify() -> list[Seen]:
    """Every operation, dtype, layout and shape, interpreted and as compiled code on the virtual GPU."""
    return [_command("verify", "--on", place) for place in ("interpreter", "virtual")]


def resources() -> list[Seen]:
    """What every configuration of every kernel compiles to, for four targets."""
    return [_command("resources")]


def kernels() -> list[Seen]:
    """Our kernels on the virtual GPU: beside torchvision's, three draws of the RoIs; and those without bars, one."""
    others = [each for each in OPERATIONS if each not in WITH_BARS]
    return [
        _command("kernels", "--on", "virtual", "--seeds", "4", "5", "6", "--operation", *WITH_BARS),
        _command("kernels", "--on", "virtual", "--seeds", "4", "--out", "runs/other-kernels", "--operation", *others),
    ]


def _command(*arguments: str) -> Seen:
    """A command of `python -m bench` that judges for itself; what it prints is passed on."""
    done = subprocess.run([sys.executable, "-m", "bench", *arguments], check=False)
    return Seen(f"bench {' '.join(arguments)}", "exit code 0", str(done.returncode), done.returncode == 0)


BARS: dict[str, Callable[[], list[Seen]]] = {
    "demo": demo,
    "microscopy": microscopy,
    "photos": photos,
    "evaluator": evaluator,
    "inference": inference,
    "operations": operations,
    "verify": verify,
    "resources": resources,
    "kernels": kernels,
}


def main(arguments: list[str]) -> int:
    """`bars [NAME ...]`, all without a name; exit code 1 if a bar is not met, 2 for a wrong call."""
    if set(arguments) - set(BARS):
        print(f"usage: python -m bench bars [{' | '.join(BARS)}] ...", file=sys.stderr)
        return 2
    return 0 if run(arguments, Console()) else 1


def run(names: Sequence[str], console: Console) -> bool:
    """Runs bars and prints each as it ends; whether all hold."""
    all_hold = True
    for name in names or list(BARS):
        lines = BARS[name]()
        table = Table(title=f"{name}: {BARS[name].__doc__}", title_justify="left")
        for heading in ("what", "asked", "seen", "holds"):
            table.add_column(heading)
        for line in lines:
            table.add_row(line.what, line.asked, line.seen, "yes" if line.holds else "NO")
        console.print(table)
        all_hold &= all(line.holds for line in lines)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    return all_hold


def _mrcnn(*arguments: str) -> float:
    """Runs the command line as a user would; wall seconds."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "mrcnn.cli", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"mrcnn {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start

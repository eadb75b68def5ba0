"""What a running command leaves and shows: a writable folder, metrics as JSON lines, progress."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class OutputError(OSError):
    """A place that cannot be written."""


def writable_folder(path: Path) -> Path:
    """Makes a folder and proves that files can be written into it, before any work is done for it.

    Raises:
        OutputError: if it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be used as an output folder ({error.strerror}).") from error
    return path


def write_json(path: Path, value: Any) -> None:
    """Writes JSON by way of a temporary name, so that a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=None if isinstance(value, list) else 2) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error
    finally:
        temporary.unlink(missing_ok=True)


class MetricsLog:
    """Metrics as JSON lines in `metrics.jsonl`, and for TensorBoard where that is installed.

    Args:
        folder: where both go; TensorBoard's files into its subfolder `tensorboard`.
        from_step: a resumed training starts here; records of later steps, which it will make again, are
            dropped. 0 starts an empty log.
    """

    def __init__(self, folder: Path, from_step: int = 0) -> None:
        path = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(path) if record["step"] <= from_step] if from_step else []
        path.write_text("".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", buffering=1)  # a line at a time, so that others can follow the training
        self._tensorboard = _tensorboard(folder / "tensorboard", from_step)

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds one record; it needs a `step`, and its numbers may lie in nested mappings."""
        self._file.write(json.dumps(record) + "\n")
        if self._tensorboard is not None:
            for name, value in _flat(record):
                if name != "step":
                    self._tensorboard.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file, none if it does not exist; a line cut short by a kill is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def _tensorboard(folder: Path, from_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=from_step + 1 if from_step else None)


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            pairs.append((prefix + name, value))
    return pairs


class ProgressLine:
    """A progress bar with rate and time left on a terminal; a plain line now and then anywhere else.

    Args:
        console: where to show it.
        title: what is being done.
        total: units of work in all.
        done: units done before.
        unit: what a unit is called.

    Attributes:
        note: words to show behind it; may be changed at any time.
    """

    def __init__(self, console: Console, title: str, total: int, done: int = 0, unit: str = "steps") -> None:
        self._console, self._title, self._total, self._unit = console, title, total, unit
        self._first = self._done = done
        self._began = self._spoke = time.perf_counter()
        self.note = ""
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, rate="", note="")

    def __enter__(self) -> ProgressLine:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, units: int = 1) -> None:
        """Counts units of work as done, and shows it."""
        self._done += units
        now = time.perf_counter()
        rate = (self._done - self._first) / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=f"{rate:.2f} {self._unit}/s", note=self.note)
        elif now - self._spoke >= 5 or self._done == self._total:
            self._spoke = now
            left = _clock((self._total - self._done) / rate)
            words = f"{self._title} {self._done}/{self._total}  {rate:.2f} {self._unit}/s  {left} left"
            self._console.print(f"{words}  {self.note}".rstrip(), highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""Rows of figures, and the files that hold them with what they were measured on."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """The figures of one measurement.

    Attributes:
        case: the operation, its direction and shape. dtype, layout: of the tensors that it is for. seed: of the RoIs.
        by: whose it is and where it ran.
        config: what was chosen for each tuned kernel.
        figures: by name, with the unit in it.
    """

    case: str
    dtype: str
    layout: str
    seed: int
    by: str
    config: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """What identifies the measurement from one run to another."""
        return self.case, self.dtype, self.layout, self.seed, self.by

    @property
    def name(self) -> str:
        """The key, for people."""
        return f"{self.case}, {self.dtype} {self.layout}, seed {self.seed}, {self.by}"


@dataclass(frozen=True)
class Results:
    """Rows, and what they were measured on."""

    environment: dict[str, str]
    rows: list[Row]


def write_json(path: Path, results: Results) -> None:
    """What `read` takes back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(results), indent=1) + "\n")


def read(path: Path) -> Results:
    """The results in a JSON file.

    Raises:
        ValueError: the file does not hold results.
    """
    try:
        found = json.loads(path.read_text())
        return Results(dict(found["environment"]), [Row(**row) for row in found["rows"]])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold results of python -m bench kernels: {error!r}") from error


def write_csv(path: Path, results: Results) -> None:
    """A line a row, a column a figure, the environment in each line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in results.rows for name in row.figures))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        keys = ["case", "dtype", "layout", "seed", "by"]
        writer.writerow([*keys, *names, "config", *results.environment])
        for row in results.rows:
            figures = [row.figures.get(name, "") for name in names]
            writer.writerow([*row.key, *figures, row.config, *results.environment.values()])


def differences(first: Sequence[Row], second: Sequence[Row]) -> tuple[list[str], list[str], list[str]]:
    """What changed from one file to another.

    Returns:
        A line for each row that both have, with the ratio second / first of each figure that is not the same, and what
        was chosen if that is not; the names of rows that only the first has; and of those that only the second has.
    """
    later = {row.key: row for row in second}
    earlier = {row.key for row in first}
    lines = [f"{row.name}: {_changes(row, later[row.key])}" for row in first if row.key in later]
    only_first = [row.name for row in first if row.key not in later]
    return lines, only_first, [row.name for row in second if row.key not in earlier]


def _changes(first: Row, second: Row) -> str:
    ratios = _ratios(first.figures, second.figures)
    return ratios if first.config == second.config else f"{ratios}, from {first.config!r} to {second.config!r}"


def _ratios(first: dict[str, float], second: dict[str, float]) -> str:
    parts, same = [], 0
    for name, value in first.items():
        if name not in second:
            parts.append(f"{name} only in the first")
        elif second[name] == value:
            same += 1
        elif value == 0:
            parts.append(f"{name} from 0 to {second[name]:.4g}")
        else:
            parts.append(f"{name} x {second[name] / value:.3f}")
    parts += [f"{name} only in the second" for name in second if name not in first]
    return ", ".join(parts + ([f"{same} the same"] if same else [])) or "no figures"

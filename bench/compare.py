"""`python -m bench compare A B`: ratios between two files of results, row by row."""

import sys
from pathlib import Path

from bench.results import differences, read


def main(arguments: list[str]) -> int:
    """Prints B / A of each figure, and which rows one of them lacks; exit code 2 for a wrong call."""
    if len(arguments) != 2 or any(each.startswith("-") for each in arguments):
        print("usage: python -m bench compare A.json B.json (written by python -m bench kernels)", file=sys.stderr)
        return 2
    try:
        first, second = (read(Path(each)) for each in arguments)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for name in dict.fromkeys([*first.environment, *second.environment]):
        a, b = first.environment.get(name, "unknown"), second.environment.get(name, "unknown")
        if a != b:
            print(f"{name}: {a} and {b}")
    lines, only_first, only_second = differences(first.rows, second.rows)
    print("\n".join(lines) or "no row is in both files")
    for path, names in zip(arguments, (only_first, only_second), strict=True):
        if names:
            print(f"only in {path}:")
            print("\n".join(f"  {name}" for name in names))
    return 0

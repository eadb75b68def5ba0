"""`python -m bench`: measurements, one command each."""

import sys

from rich.console import Console

from bench.bars import BARS, run


def main(arguments: list[str]) -> int:
    """`bars [NAME ...]`; exit code 1 if a bar is not met, 2 for a wrong call."""
    if not arguments or arguments[0] != "bars" or set(arguments[1:]) - set(BARS):
        print(f"usage: python -m bench bars [{' | '.join(BARS)}] ...", file=sys.stderr)
        return 2
    return 0 if run(arguments[1:], Console()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

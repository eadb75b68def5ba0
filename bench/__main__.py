"""`python -m bench COMMAND ...`: measurements and proofs, one command each."""

import sys
from importlib import import_module

# A command is a module of its name in `bench`, with a function `main(arguments: list[str]) -> int` that gives the exit
# code: 1 if something does not hold, 2 for a wrong call. It is imported only when it is asked for.
COMMANDS = {
    "bars": "the long measurements, asked beside seen",
    "verify": "every operation, dtype, layout and shape: Triton, eager, reference and torchvision",
    "resources": "registers, spills, access widths and atomics of every configuration of every kernel and target",
    "tune": "the fastest configuration of every kernel on this GPU, as a table that can be shipped",
    "compare": "ratios between two files of results",
    "kernels": "our kernels beside torchvision's: times on a GPU, counts on the virtual one",
}


def main(arguments: list[str]) -> int:
    """Runs the command that the first argument names with the rest of them; the exit code."""
    if not arguments or arguments[0] not in COMMANDS:
        told = bool(arguments) and arguments[0] in ("-h", "--help")
        print(usage(), file=sys.stdout if told else sys.stderr)
        return 0 if told else 2
    code: int = import_module(f"bench.{arguments[0]}").main(arguments[1:])
    return code


def usage() -> str:
    """What there is."""
    lines = [f"usage: python -m bench {' | '.join(COMMANDS)} ..."]
    return "\n".join(lines + [f"  {name:10s} {what}" for name, what in COMMANDS.items()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

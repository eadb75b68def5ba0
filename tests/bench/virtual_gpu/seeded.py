"""Copies of our kernels with a fault put into them, launched in place of the originals."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from pathlib import Path
from unittest import mock

import kernels

# Launchers must still call `kernels.gpu.tuning.launch`, which the virtual GPU stands in for.
_IMPORT = re.compile(r"from kernels\.gpu(?=\.(?!tuning\b))")
_IMPORT_BESIDE = re.compile(r"from kernels\.gpu import (\w+), tuning")


@contextmanager
def seeded(folder: Path, operation: str, stem: str = "", old: str = "", new: str = "") -> Iterator[None]:
    """While active, `operation` launches kernels from a copy of kernels/gpu, one line of which is another.

    Args:
        folder: for the copy; empty, and named as no other test's.
        operation: the file in kernels/gpu whose launchers take the place of the original's.
        stem: the file that is altered; `old` must be in it once and becomes `new`. Nothing is where it is empty.

    Raises:
        AssertionError: `old` is not there once.
    """
    package = folder / f"seeded_{folder.name}"
    package.mkdir()
    for source in Path(kernels.__file__).parent.joinpath("gpu").glob("*.py"):
        text = source.read_text()
        if source.stem == stem:
            assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {source.name}"
            text = text.replace(old, new)
        text = _IMPORT_BESIDE.sub(rf"from {package.name} import \1\nfrom kernels.gpu import tuning", text)
        (package / source.name).write_text(_IMPORT.sub(f"from {package.name}", text))
    with mock.patch.object(sys, "path", [str(folder), *sys.path]):
        invalidate_caches()
        copy = import_module(f"{package.name}.{operation}")
    import_module(f"kernels.gpu.{operation}")
    with mock.patch.dict(sys.modules, {f"kernels.gpu.{operation}": copy}):
        yield

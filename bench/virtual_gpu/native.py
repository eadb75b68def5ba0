"""Builds the C++ runtime once for this machine, and loads it.

The library lies in a cache outside the repository, named by a hash of its source, the compiler and the processor:
`MRCNN_VIRTUAL_GPU_CACHE`, or `~/.cache/mask-rcnn-triton/virtual_gpu`.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.virtual_gpu.records import SHARED_RECORDS

RUNTIME = Path(__file__).parent / "runtime"
FLAGS = (
    "-std=c++17",
    "-O2",
    "-ftree-vectorize",
    "-fvect-cost-model=dynamic",
    "-march=native",
    "-ffp-contract=off",  # PTX says itself what is fused
    "-fwrapv",
    "-fno-strict-aliasing",  # rows are read as whatever type an instruction says
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)


def cache_folder() -> Path:
    """Where compiled and extracted files are kept between processes."""
    chosen = os.environ.get("MRCNN_VIRTUAL_GPU_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache/mask-rcnn-triton/virtual_gpu"


def compiler() -> str | None:
    """The C++ compiler, GCC or Clang: `CXX` if that is set, else the first one on the path."""
    named = os.environ.get("CXX")
    return next((found for name in ([named] if named else ["g++", "clang++"]) if (found := shutil.which(name))), None)


def has_compiler() -> bool:
    """Whether the virtual GPU can be built here; tests skip where not."""
    return compiler() is not None


@dataclass(frozen=True)
class Runtime:
    """The loaded library, the numbers of its handlers by name, and the names of its counters in order."""

    library: ctypes.CDLL
    handlers: dict[str, int]
    launch_counters: tuple[str, ...]
    site_counters: tuple[str, ...]


@functools.cache
def load() -> Runtime:
    """The runtime, built if this machine has not got it yet (some 15 s).

    Raises:
        RuntimeError: there is no C++ compiler, or it fails.
    """
    library = ctypes.CDLL(str(_built()))
    names = {}
    for function in ("handler_name", "launch_counter_name", "site_counter_name"):
        getattr(library, function).restype = ctypes.c_char_p
        names[function] = tuple(_until_none(getattr(library, function)))
    sizes = (ctypes.c_uint64 * len(SHARED_RECORDS))()
    library.record_sizes(sizes)
    for record, size in zip(SHARED_RECORDS, sizes, strict=True):
        if ctypes.sizeof(record) != size:
            raise RuntimeError(f"{record.__name__} has {ctypes.sizeof(record)} bytes in Python and {size} in C++")
    handlers = {name: number for number, name in enumerate(names["handler_name"])}
    return Runtime(library, handlers, names["launch_counter_name"], names["site_counter_name"])


def _until_none(function: Callable[[int], bytes | None]) -> Iterator[str]:
    number = 0
    while (name := function(number)) is not None:
        yield name.decode()
        number += 1


def _built() -> Path:
    found = compiler()
    if found is None:
        raise RuntimeError("the virtual GPU needs a C++ compiler: install g++ or clang++, or set CXX to one")
    sources = sorted(RUNTIME.iterdir())
    version = subprocess.run([found, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(b"\0".join([version, " ".join(FLAGS).encode(), _processor()]))
    for source in sources:
        digest.update(source.name.encode() + source.read_bytes())
    library = cache_folder() / f"runtime-{digest.hexdigest()[:20]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        # Made under another name and moved, so that nobody loads half a library.
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            command = [found, *FLAGS, str(RUNTIME / "virtual_gpu.cpp"), "-o", str(made)]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
            made.replace(library)
    return library


def _processor() -> bytes:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        described = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    except OSError:
        described = [platform.processor()]
    return "\n".join([platform.machine(), *described]).encode()

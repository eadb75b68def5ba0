"""Chosen configurations on disk: a JSON file for each device and version of Triton.

{"device": "NVIDIA H100 80GB HBM3", "architecture": 90, "triton": "3.8.0", "choices":
    {"gather_kernel 0f3a...": {"CHANNELS=256 ... float32 int32": {"BLOCK_C": 128, "num_warps": 4, ...}}}}

Choices of this machine lie in MRCNN_TUNING_FOLDER, or ~/.cache/mask-rcnn-triton/tuning ($XDG_CACHE_HOME); those that
come with the package, in `tuned/`, are looked up after them. A kernel's name is followed by a hash of its source, that
of the functions it calls, and its configurations: what was chosen for another source is not found.

Files are replaced as a whole, so that a reader never sees half of one, and one writer waits for another, so that ranks
that tune at the same time lose nothing.
"""

import functools
import hashlib
import inspect
import json
import os
import re
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.autotuner import Autotuner

SHIPPED = Path(__file__).parent / "tuned"

Choices = dict[str, dict[str, dict[str, Any]]]  # by kernel, then key: the configuration's arguments


def folder() -> Path:
    """Where the choices of this machine are kept."""
    if chosen := os.environ.get("MRCNN_TUNING_FOLDER"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else _home() / ".cache") / "mask-rcnn-triton/tuning"


def _home() -> Path:
    """Some containers have users without one."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir())


def find(kernel: Autotuner, key: Sequence[Any], fitting: Sequence[triton.Config]) -> triton.Config | None:
    """The one of the fitting configurations that was chosen for the key on a device like the current one."""
    for place in (folder(), SHIPPED):
        chosen = read(place / file_name()).get(name_of(kernel), {}).get(text_of(kernel, key))
        for config in fitting:
            if config.all_kwargs() == chosen:
                return config
    return None


def keep(kernel: Autotuner, key: Sequence[Any], config: triton.Config) -> None:
    """Adds a choice to those of this machine.

    Raises:
        OSError: the folder or file cannot be written.
    """
    add(folder() / file_name(), {name_of(kernel): {text_of(kernel, key): config.all_kwargs()}})


def read(path: Path) -> Choices:
    """The choices of a file: none if there is no such file, and none, with a warning, if it is not what it should be.

    A file that cannot be read is replaced at the next choice.
    """
    try:
        choices = json.loads(path.read_text())["choices"]
        if all(isinstance(config, dict) for keys in choices.values() for config in keys.values()):
            return dict(choices)
        raise TypeError("a configuration is not an object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        warnings.warn(f"no configurations are taken from {path}: {type(error).__name__}: {error}", stacklevel=2)
        return {}


def add(path: Path, more: Choices) -> None:
    """Adds choices for the current device to a file, making it if need be; of two for one key the new one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        choices = read(path)
        for kernel, keys in more.items():
            choices[kernel] = {**choices.get(kernel, {}), **keys}
        table = {**_device(), "choices": {kernel: dict(sorted(choices[kernel].items())) for kernel in sorted(choices)}}
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            part.write_text(json.dumps(table, indent=1) + "\n")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time. Without locks, as on some network file systems, a choice can be lost: it is made again."""
    with open(path.with_suffix(".lock"), "w") as file:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def file_name() -> str:
    """Of the current device and this version of Triton."""
    words = "-".join(str(value) for value in _device().values())
    return re.sub(r"[^\w.+-]+", "_", words) + ".json"


def _device() -> dict[str, Any]:
    target = triton.runtime.driver.active.get_current_target()
    return {
        "device": torch.cuda.get_device_name(),
        "architecture": target.arch,
        "triton": triton.__version__,
    }


def text_of(kernel: Autotuner, key: Sequence[Any]) -> str:
    """A key (`tuning.key_of`) as text."""
    values, dtypes = key[: len(kernel.keys)], key[len(kernel.keys) :]
    named = [f"{name}={value}" for name, value in zip(kernel.keys, values, strict=True)]
    return " ".join([*named, *[str(dtype).removeprefix("torch.") for dtype in dtypes]])


@functools.cache
def name_of(kernel: Autotuner) -> str:
    """A kernel's name and the hash of what it is made of."""
    made_of = "\0".join([*sorted(_sources(kernel.fn, set())), *map(str, kernel.configs)])
    return f"{kernel.base_fn.__name__} {hashlib.sha256(made_of.encode()).hexdigest()[:16]}"


def _sources(function: Any, seen: set[int]) -> Iterator[str]:
    """The source of a jit function and of all that it calls, and the constants that they use.

    Unlike Triton's own hash it does not change when a function moves within its file. Triton's library is left to the
    version of Triton.
    """
    if id(function) in seen:
        return
    seen.add(id(function))
    python = function.fn
    yield inspect.getsource(python)
    for name in python.__code__.co_names:
        value = python.__globals__.get(name)
        if inspect.isfunction(getattr(value, "fn", None)):
            yield from _sources(value, seen)
        elif isinstance(value, int | float | str | triton.language.constexpr):
            yield f"{name} = {value!r}"

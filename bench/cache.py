"""Results that do not depend on the machine, kept on disk for as long as nothing that they depend on changes.

They lie beside the virtual GPU's compiled runtime, in `results/`, named by a hash of the sources and versions.
"""

import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.virtual_gpu.native import cache_folder


def cached(
    name: str,
    sources: Sequence[Path],
    packages: Sequence[str],
    make: Callable[[], Any],
    fresh: bool = False,
    keep: Callable[[Any], bool] = lambda _: True,
) -> tuple[Any, bool]:
    """What `make` returns, as JSON gives it back, and whether it comes from the disk.

    Args:
        name: what it is, with every argument that it depends on.
        sources: files, and folders of files, that it depends on; any change makes it anew.
        packages: whose versions it depends on.
        fresh: make it anew whatever is on the disk.
        keep: whether what was made is to be kept, so that what failed is made again each time.
    """
    digest = hashlib.sha256(name.encode() + b"\0" + _digest(tuple(sources)))
    for package in packages:
        digest.update(f"{package} {_version(package)}\0".encode())
    path = cache_folder() / "results" / f"{digest.hexdigest()[:32]}.json"
    if not fresh:
        with suppress(FileNotFoundError):
            return json.loads(path.read_text())["result"], True
    made = make()
    text = json.dumps({"name": name, "result": made})
    if not keep(made):
        path.unlink(missing_ok=True)
        return json.loads(text)["result"], False
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written under another name and moved, so that nobody reads half a file.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / path.name
        whole.write_text(text)
        whole.replace(path)
    return json.loads(text)["result"], False


@functools.cache
def _digest(sources: tuple[Path, ...]) -> bytes:
    """Of all files, read once a process: what is edited while it runs is not what it runs."""
    digest = hashlib.sha256()
    for file in _files(sources):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.digest()


def _files(sources: Sequence[Path]) -> list[Path]:
    files: set[Path] = set()
    for source in sources:
        if source.is_file():
            files.add(source)
            continue
        files |= {file for file in source.rglob("*") if file.suffix in (".py", ".h", ".cpp")}
    return sorted(files)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"

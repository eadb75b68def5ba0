"""Chosen configurations on disk: found again, by device, version and source; harmed by nothing."""

import importlib.util
import json
import multiprocessing
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime.autotuner import Autotuner

from kernels.gpu import choices, tuning

SOURCE = """
import triton
import triton.language as tl
from kernels.gpu import tuning

FACTOR = tl.constexpr(2)

@triton.jit
def helper(x):
    return x * FACTOR

@tuning.tuned(
    configs=[triton.Config({"BLOCK": 64}), triton.Config({"BLOCK": 32}, num_warps=2)],
    key=["CHANNELS", "bucket"],
    prune=lambda configs, arguments: list(configs),
)
@triton.jit
def kernel(x_ptr, bucket, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    tl.store(x_ptr, helper(bucket))
"""
KEY = (256, 64, torch.float32)
DEVICE = {"device": "A card (40 GB)", "architecture": 90, "triton": "3.8.0"}


def kernel_of(folder: Path, source: str = SOURCE) -> Autotuner:
    """The kernel of a module that is written and imported anew."""
    folder.mkdir(exist_ok=True)
    path = folder / "module.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("module", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Autotuner = module.kernel
    return found


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The machine's folder, empty, as is the package's."""
    monkeypatch.setenv("MRCNN_TUNING_FOLDER", str(tmp_path / "here"))
    monkeypatch.setattr(choices, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(choices, "_device", lambda: DEVICE)
    return tmp_path / "here"


def test_what_is_kept_is_found(here: Path, tmp_path: Path) -> None:
    kernel = kernel_of(tmp_path)
    assert choices.find(kernel, KEY, kernel.configs) is None
    for config in kernel.configs:
        choices.keep(kernel, KEY, config)
        assert choices.find(kernel, KEY, kernel.configs) is config
    for other in ((128, 64, torch.float32), (256, 128, torch.float32), (256, 64, torch.bfloat16)):
        assert choices.find(kernel, other, kernel.configs) is None
    assert [path.name for path in here.glob("*.json")] == ["A_card_40_GB_-90-3.8.0.json"]


def test_the_file_is_plain(here: Path, tmp_path: Path) -> None:
    kernel = kernel_of(tmp_path)
    choices.keep(kernel, KEY, kernel.configs[1])
    table = json.loads((here / choices.file_name()).read_text())
    ((name, keys),) = table.pop("choices").items()
    assert table == DEVICE
    assert name.startswith("kernel ")
    ((key, config),) = keys.items()
    assert key == "CHANNELS=256 bucket=64 float32"
    assert config.items() >= {"BLOCK": 32, "num_warps": 2}.items()


def test_a_choice_that_does_not_fit_is_not_taken(here: Path, tmp_path: Path) -> None:
    kernel = kernel_of(tmp_path)
    choices.keep(kernel, KEY, kernel.configs[1])
    assert choices.find(kernel, KEY, kernel.configs[:1]) is None


@pytest.mark.parametrize("change", ["device", "architecture", "triton"])
def test_another_device_or_version_has_its_own(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    kernel = kernel_of(tmp_path)
    choices.keep(kernel, KEY, kernel.configs[0])
    monkeypatch.setattr(choices, "_device", lambda: {**DEVICE, change: "gfx942"})
    assert choices.find(kernel, KEY, kernel.configs) is None
    choices.keep(kernel, KEY, kernel.configs[1])
    monkeypatch.setattr(choices, "_device", lambda: DEVICE)
    assert choices.find(kernel, KEY, kernel.configs) is kernel.configs[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return x * FACTOR", "return x + FACTOR"),
        ("constexpr(2)", "constexpr(3)"),
        ("tl.store(x_ptr, helper(bucket))", "tl.store(x_ptr, helper(bucket + 1))"),
        ('triton.Config({"BLOCK": 32}, num_warps=2)', 'triton.Config({"BLOCK": 16}, num_warps=2)'),
    ],
    ids=["helper", "constant", "kernel", "configurations"],
)
def test_another_source_is_another_kernel(tmp_path: Path, old: str, new: str) -> None:
    assert old in SOURCE
    first, second = (
        choices.name_of(kernel_of(tmp_path / folder, source))
        for folder, source in (("a", SOURCE), ("b", SOURCE.replace(old, new)))
    )
    assert first != second


def test_a_kernel_that_moves_stays_the_same(tmp_path: Path) -> None:
    moved = SOURCE.replace("FACTOR = ", "# A comment\n\nUNUSED = 1\nFACTOR = ")
    assert choices.name_of(kernel_of(tmp_path / "a")) == choices.name_of(kernel_of(tmp_path / "b", moved))


def test_this_machine_goes_before_the_package(here: Path, tmp_path: Path) -> None:
    kernel = kernel_of(tmp_path)
    for config, path in zip(kernel.configs, (choices.SHIPPED, here), strict=True):
        keys = {choices.text_of(kernel, KEY): config.all_kwargs()}
        choices.add(path / choices.file_name(), {choices.name_of(kernel): keys})
        assert choices.find(kernel, KEY, kernel.configs) is config


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"choices"',
        "{}",
        '{"choices": []}',
        '{"choices": {"a": 1}}',
        '{"choices": {"a": {"b": 1}}}',
    ],
)
def test_a_corrupt_file_is_replaced(here: Path, tmp_path: Path, text: str) -> None:
    kernel = kernel_of(tmp_path)
    here.mkdir()
    path = here / choices.file_name()
    path.write_text(text)
    with pytest.warns(UserWarning, match="no configurations are taken from"):
        assert choices.find(kernel, KEY, kernel.configs) is None
    with pytest.warns(UserWarning, match="no configurations are taken from"):
        choices.keep(kernel, KEY, kernel.configs[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choices.find(kernel, KEY, kernel.configs) is kernel.configs[1]


def test_bytes_that_are_no_text(here: Path, tmp_path: Path) -> None:
    here.mkdir()
    (here / choices.file_name()).write_bytes(b"\xff\xfe\x00")
    with pytest.warns(UserWarning, match="UnicodeDecodeError"):
        assert choices.find(kernel_of(tmp_path), KEY, []) is None


def test_a_failed_write_leaves_the_file(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_of(tmp_path)
    choices.keep(kernel, KEY, kernel.configs[0])

    def full(self: Path, text: str) -> int:
        with open(self, "w") as file:
            file.write(text[:20])
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="no space"):
            choices.keep(kernel, KEY, kernel.configs[1])
    assert choices.find(kernel, KEY, kernel.configs) is kernel.configs[0]
    assert sorted(path.suffix for path in here.iterdir()) == [".json", ".lock"]


def _add_many(path: Path, writer: int, number: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for count in range(number):
            choices.add(path, {f"kernel {writer % 2}": {f"{writer} {count}": {"BLOCK": count}}})


def test_processes_that_write_at_the_same_time_lose_nothing(here: Path) -> None:
    """And who reads meanwhile sees whole files."""
    path, number = here / "table.json", 30
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_add_many, args=(path, writer, number)) for writer in range(4)]
    for writer in writers:
        writer.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while any(writer.is_alive() for writer in writers):
            choices.read(path)
    assert [writer.exitcode for writer in writers] == [0] * 4
    seen = {key: config for keys in choices.read(path).values() for key, config in keys.items()}
    assert seen == {f"{writer} {count}": {"BLOCK": count} for writer in range(4) for count in range(number)}


def test_without_locks_a_choice_is_still_kept(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def none(*_: Any) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    kernel = kernel_of(tmp_path)
    choices.keep(kernel, KEY, kernel.configs[1])
    assert choices.find(kernel, KEY, kernel.configs) is kernel.configs[1]


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"MRCNN_TUNING_FOLDER": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/mask-rcnn-triton/tuning"),
        ({"HOME": "/c"}, "/c/.cache/mask-rcnn-triton/tuning"),
    ],
)
def test_folder(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], folder: str) -> None:
    for name in ("MRCNN_TUNING_FOLDER", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert choices.folder() == Path(folder)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("MRCNN_TUNING_FOLDER", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert choices.folder() == Path(tempfile.gettempdir()) / ".cache/mask-rcnn-triton/tuning"


def test_every_kernel_has_a_name_of_its_own() -> None:
    from bench.compiled.launches import tuned_kernels

    names = [choices.name_of(kernel) for kernel in tuned_kernels()]
    assert len(set(names)) == len(names) > 10


def test_keys_of_a_launch() -> None:
    """The values of the key in its order, and the dtypes of all tensors, those in tuples too."""
    kernel = type("Kernel", (), {"keys": ["CHANNELS", "rois_bucket"]})()
    tensors = ((torch.zeros(1), torch.zeros(1).bfloat16()), torch.zeros(1).long())
    key = tuning.key_of(kernel, tensors, {"rois_bucket": 16, "CHANNELS": 3, "ALIGNED": True})
    assert key == (3, 16, torch.float32, torch.bfloat16, torch.int64)
    assert choices.text_of(kernel, key) == "CHANNELS=3 rois_bucket=16 float32 bfloat16 int64"

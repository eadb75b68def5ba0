"""How a launch comes by its configuration, with kernels that run in the interpreter and a clock that is made up."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from operations import OPERATIONS
from torch import Tensor
from torch.utils import _pytree as pytree
from triton.runtime.autotuner import Autotuner
from triton.runtime.errors import OutOfResources

from bench.compiled.launches import tuned_kernels
from kernels.gpu import capture, choices, tuning

pytestmark = pytest.mark.interpreter

CONFIGS = [triton.Config({"BLOCK": block}) for block in (16, 32, 64)]


@triton.jit
def add(out_ptr, grad_ptr, number, bucket, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Adds to what is there, as a gradient is accumulated."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    grad = tl.load(grad_ptr + place, mask=place < number, other=0.0)
    tl.atomic_add(out_ptr + place % WIDTH, grad, mask=place < number)


def tuned_add(**options: Any) -> Autotuner:
    kernel: Autotuner = tuning.tuned(
        configs=CONFIGS, key=["WIDTH", "bucket"], prune=lambda configs, arguments: list(configs), **options
    )(add)
    return kernel


class Clock:
    """Stands for a benchmark: runs the call some times and says what it is told to, in order, the least last."""

    def __init__(self) -> None:
        self.calls, self.repeats = 0, 2
        self.times: Callable[[int], float] = lambda call: -call

    def __call__(self, call: Callable[[], None]) -> float:
        for _ in range(self.repeats):
            call()
        self.calls += 1
        return self.times(self.calls - 1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    """A machine with a device, on which nothing is known."""
    clock = Clock()
    monkeypatch.setattr(tuning, "pinned", lambda: False)
    monkeypatch.setattr(tuning, "benchmark", clock)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(choices, "_device", lambda: {"device": "A card", "architecture": 90, "triton": "3.8.0"})
    monkeypatch.setattr(choices, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setenv("MRCNN_TUNING_FOLDER", str(tmp_path / "here"))
    for kernel in tuned_kernels():
        monkeypatch.setattr(kernel, "cache", {})
    return clock


def launched(kernel: Autotuner, width: int = 8, number: int = 100) -> Tensor:
    """What is added to 1, which must be the sum of every width-th of 0 to number - 1."""
    grid, (out, grad), arguments = launch_of(width, number)
    tuning.launch(kernel, grid, (out, grad), **arguments)
    return out - 1


def launch_of(width: int = 8, number: int = 100) -> tuple[Any, tuple[Tensor, Tensor], dict[str, int]]:
    """Grid, tensors and arguments."""
    tensors = torch.ones(width), torch.arange(number, dtype=torch.float32)
    arguments = {"number": number, "bucket": tuning.bucket(number), "WIDTH": width}
    return lambda meta: (triton.cdiv(number, meta["BLOCK"]),), tensors, arguments


def sums(width: int = 8, number: int = 100) -> Tensor:
    return torch.tensor([float(sum(range(first, number, width))) for first in range(width)])


def test_the_fastest_is_taken_and_remembered(clock: Clock) -> None:
    kernel = tuned_add(accumulates=["out_ptr"])
    clock.times = lambda call: [3.0, 1.0, 2.0][call]
    for number in (100, 101, 128):
        assert torch.equal(launched(kernel, number=number), sums(number=number))
    assert clock.calls == 3
    assert list(kernel.cache.values()) == [CONFIGS[1]]


def test_each_bucket_constant_dtype_and_device_is_measured(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tuned_add(accumulates=["out_ptr"])
    launched(kernel)
    launched(kernel, number=129)
    assert clock.calls == 6
    launched(kernel, width=4)
    assert clock.calls == 9
    monkeypatch.setattr(choices, "_device", lambda: {"device": "Another", "architecture": 80, "triton": "3.8.0"})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    launched(kernel)
    assert clock.calls == 12


def test_another_process_finds_the_choice(clock: Clock) -> None:
    clock.times = lambda call: [3.0, 1.0, 2.0][call]
    launched(tuned_add(accumulates=["out_ptr"]))
    another = tuned_add(accumulates=["out_ptr"])
    assert torch.equal(launched(another), sums())
    assert clock.calls == 3
    assert list(another.cache.values()) == [CONFIGS[1]]


def test_what_the_device_has_no_room_for_is_passed_over(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tuned_add(accumulates=["out_ptr"])

    def times(call: int) -> float:
        if call == 2:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return float(call)

    clock.times = times
    launched(kernel)
    assert list(kernel.cache.values()) == [CONFIGS[0]]


def test_a_folder_that_cannot_be_written_is_told(clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MRCNN_TUNING_FOLDER", str(tmp_path / "file"))
    kernel = tuned_add(accumulates=["out_ptr"])
    with pytest.warns(UserWarning, match="is not kept|no configurations are taken"):
        assert torch.equal(launched(kernel), sums())
    assert len(kernel.cache) == 1


def test_threads_measure_once(clock: Clock) -> None:
    kernel = tuned_add(accumulates=["out_ptr"])
    results: list[triton.Config] = []

    def choose() -> None:  # and not launch: the interpreter is for one thread
        results.append(tuning.configuration(kernel, *launch_of()))

    threads = [threading.Thread(target=choose) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.calls == 3
    assert results == [CONFIGS[2]] * 4


def test_without_memory_to_measure_in_the_default_is_taken_for_good(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By this process: at each try PyTorch would give back all the memory that it keeps, and wait for the device."""
    kernel = tuned_add(accumulates=["out_ptr"])

    def full(call: int) -> float:
        raise torch.OutOfMemoryError("no memory")

    clock.times = full
    for _ in range(3):
        assert torch.equal(launched(kernel), sums())
    assert (clock.calls, list(kernel.cache.values())) == (1, [CONFIGS[0]])
    clock.times = float
    another = tuned_add(accumulates=["out_ptr"])
    launched(another)
    assert clock.calls == 4  # nothing was kept on disk


def test_nothing_is_measured_while_a_graph_is_captured(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is taken and not remembered; loading is permitted, and what is known is used."""
    kernel = tuned_add(accumulates=["out_ptr"])
    relaxed: list[bool] = []

    class Permitted:
        def __enter__(self) -> None:
            relaxed.append(True)

        def __exit__(self, *_: Any) -> None:
            relaxed.append(False)

    monkeypatch.setattr(tuning, "loading_permitted", Permitted)
    monkeypatch.setattr(tuning, "_capturing", lambda: True)
    assert torch.equal(launched(kernel), sums())
    assert (clock.calls, kernel.cache, relaxed) == (0, {}, [True, False])
    monkeypatch.setattr(tuning, "_capturing", lambda: False)
    launched(kernel)
    assert (clock.calls, list(kernel.cache.values()), relaxed) == (3, [CONFIGS[2]], [True, False])
    monkeypatch.setattr(tuning, "_capturing", lambda: True)
    another = tuned_add(accumulates=["out_ptr"])
    launched(another)
    assert (clock.calls, list(another.cache.values())) == (3, [CONFIGS[2]])


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "seeded fault: not declared"])
def test_tuning_does_not_accumulate(clock: Clock, declared: bool) -> None:
    kernel = tuned_add(accumulates=["out_ptr"] if declared else [])
    assert torch.equal(launched(kernel), sums()) == declared
    assert clock.calls == 3
    assert torch.equal(launched(kernel), sums())


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("nms", "batched_nms")])
def test_tuning_changes_no_result(clock: Clock, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever the kernels of an operation do to memory while every configuration runs; the default is taken."""
    clock.times, clock.repeats = float, 1
    monkeypatch.setattr(tuning, "pruned_configs", lambda kernel, *_: kernel.configs)
    operation = getattr(torch.ops.mrcnn, name).default
    arguments = OPERATIONS[name](torch.channels_last, "triton")
    first = pytree.tree_leaves(operation(*arguments))
    calls = clock.calls
    assert calls > 1
    second = pytree.tree_leaves(operation(*arguments))
    assert clock.calls == calls
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_kernels_with_atomics_say_what_they_accumulate() -> None:
    for kernel in tuned_kernels():
        atomics = any("tl.atomic_" in source for source in choices._sources(kernel.fn, set()))
        assert bool(kernel.restore_value) == atomics, kernel.base_fn.__name__
        assert set(kernel.restore_value) <= set(kernel.arg_names)


class Driver:
    """A driver library whose thread is in the mode of a capture."""

    def __init__(self, fails: bool) -> None:
        self.mode, self.fails, self.calls = 0, fails, 0

    def exchange(self, pointer: Any) -> int:
        self.calls += 1
        if self.fails:
            return 1
        number = pointer._obj
        self.mode, number.value = number.value, self.mode
        return 0


@pytest.mark.parametrize("fails", [False, True])
def test_the_mode_of_the_capture_is_put_back(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    driver = Driver(fails)
    monkeypatch.setattr(capture, "_exchange", lambda: driver.exchange)

    def load() -> None:
        with capture.loading_permitted():
            assert driver.mode == (0 if fails else capture.RELAXED)
            raise RuntimeError("of mine")

    with pytest.raises(RuntimeError, match="of mine"):
        load()
    assert (driver.mode, driver.calls) == (0, 1 if fails else 2)


def test_no_driver_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(capture.ctypes, "CDLL", missing)
    with capture.loading_permitted():
        pass

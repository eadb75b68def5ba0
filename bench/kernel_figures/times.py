"""Times of our kernels on a GPU beside torchvision's, the eager form's and torch.compile's of it.

Inputs take turns, so many of them that all together are twice the L2 cache. A call may touch only a part of its inputs,
as the mask loss does of full-size masks, so the cache is swept before each call that is timed on the device, too.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Protocol
from unittest import mock

import torch
import triton
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from triton.knobs import CompileTimes
from triton.runtime.autotuner import Autotuner

import kernels
from bench.kernel_figures.cases import Case, Function, Inputs, both, differentiate
from bench.kernel_figures.checks import check
from bench.kernel_figures.peer_checks import Check, check_timed_peer
from bench.results import Row
from kernels.gpu import tuning

ROUNDS, WARM_UP = 50, 5
# What the rounds of a slow call may take in seconds, of which there are then fewer, and how few.
PATIENCE, FEWEST = 10.0, 5
FASTEST_CLOCK = 3e9  # cycles a second, which no GPU has more of
LONGEST_LAUNCH = 0.05  # seconds that launching is taken to need at most: what seems longer waits for the GPU
# Where the eager form of each operation lies: files of `kernels.eager`, and their functions.
EAGER: dict[str, dict[str, tuple[str, ...]]] = {
    "roi_align": {"roi_align": ("roi_align", "roi_align_backward")},
    "roi_pool": {"roi_pool": ("roi_pool", "roi_pool_backward")},
    "segmented_nms": {"nms": ("segmented_nms",)},
    "batched_nms": {"nms": ("segmented_nms",)},
    "match_boxes": {"match_boxes": ("match_boxes",)},
    "decode_boxes": {"decode_boxes": ("decode_boxes",)},
    "decode_keypoints": {"decode_keypoints": ("decode_keypoints",)},
    "mask_loss": {"mask_loss": ("mask_loss", "mask_loss_backward")},
    "mask_predict_loss": {"mask_predict": ("class_logits", "mask_predict_backward"), "mask_loss": ("mask_loss",)},
    "mask_predict": {"mask_predict": ("mask_predict",)},
    "paste_masks": {"paste_masks": ("paste_masks",)},
    "encode_masks": {"encode_masks": ("mask_runs",)},
    "mask_runs": {"encode_masks": ("mask_runs",)},
}


class Clock(Protocol):
    """What takes times; tests have one of their own."""

    device: str
    cache_bytes: int

    def on_device(self, function: Callable[[], Any], launching: float = 0.0) -> float:
        """Seconds that the device needs for a call that finds nothing in the L2 cache, without what the host needs to
        launch it, which is about `launching` seconds."""

    def on_host(self, function: Callable[[], Any]) -> float:
        """Seconds until a call returns."""

    def to_end(self, function: Callable[[], Any]) -> float:
        """Seconds until a call's result is there."""


class CudaClock:
    """Takes times on the current GPU."""

    device = "cuda"

    def __init__(self) -> None:
        self.cache_bytes = int(torch.cuda.get_device_properties().L2_cache_size)
        self.swept = torch.zeros(2 * self.cache_bytes // 8, dtype=torch.int64, device=self.device)

    def sweep_cache(self) -> None:
        """Fills the L2 cache with what no call reads. Reads it: what was written would have to go to memory later."""
        self.swept.sum()

    def on_device(self, function: Callable[[], Any], launching: float = 0.0) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        # The GPU is kept busy while the host launches, so that no gap between kernels is counted. A function that waits
        # for the GPU has its gaps, which are its own; sleeping longer would not hide them.
        torch.cuda._sleep(max(4_000_000, int(2 * min(launching, LONGEST_LAUNCH) * FASTEST_CLOCK)))
        self.sweep_cache()
        start.record()
        function()
        end.record()
        end.synchronize()
        return 1e-3 * float(start.elapsed_time(end))

    def on_host(self, function: Callable[[], Any]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        seconds = time.perf_counter() - start
        torch.cuda.synchronize()
        return seconds

    def to_end(self, function: Callable[[], Any]) -> float:
        def whole() -> None:
            function()
            torch.cuda.synchronize()

        return self.on_host(whole)


@dataclass(frozen=True)
class Provider:
    """Who computes a case.

    Attributes:
        dtype, layout: of the tensors that it computes it with.
        active: a context in which `function` is called.
        check: its results are right, or this raises WrongResult.
    """

    name: str
    dtype: str
    layout: str
    function: Function
    inputs: Callable[[], Inputs]
    active: Callable[[], AbstractContextManager[Any]]
    check: Check = check


def providers(case: Case) -> Iterator[Provider]:
    """Torchvision's in float32, ours, the eager form, and torch.compile's of that."""

    @contextmanager
    def compiled() -> Iterator[None]:
        # Each case alone: after some recompilations a function would run as it is, without a word.
        torch._dynamo.reset()
        with kernels.use("eager"), ExitStack() as stack:
            stack.enter_context(torch._dynamo.config.patch(fail_on_recompile_limit_hit=True))
            # That holds in this thread only, so backward passes run in it, too.
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            for stem, names in EAGER[case.operation].items():
                module = import_module(f"kernels.eager.{stem}")
                for name in names:
                    stack.enter_context(mock.patch.object(module, name, torch.compile(getattr(module, name))))
            yield

    peer = case.timed_peer or case.peer
    yield Provider("torchvision", "float32", "contiguous", peer, case.peer_inputs, ExitStack, check_timed_peer)
    own = case.dtype_name, case.layout, case.ours, case.inputs
    yield Provider("ours", *own, lambda: kernels.use("triton"))
    yield Provider("eager", *own, lambda: kernels.use("eager"))
    yield Provider("torch.compile of eager", *own, compiled)


def time_case(case: Case, provider: Provider, clock: Clock, bandwidth: float, rounds: int = ROUNDS) -> list[Row]:
    """Rows of the case's directions, and of both together where there are two.

    Args:
        bandwidth: bytes a second that a copy moves, read and written ones together.

    Raises:
        WrongResult: the provider's results are not right.
    """
    inputs = provider.inputs()
    least = case.least(inputs)
    if len(least) > 1:
        least["forward and backward"] = sum(least.values())
    turns = on_device(inputs, clock)
    rows = []
    with provider.active(), chosen_configs() as configs:
        with compile_seconds() as compiling:
            first = clock.to_end(lambda: both(provider.function, turns[0]))
        # What is checked is computed in full precision; what is timed as PyTorch does it by default, which for
        # convolutions in float32 is TF32.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            provider.check(case, both(provider.function, turns[0]))
        for direction, count in least.items():
            run = _calls(direction, provider.function, turns)
            number = rounds_of(max(clock.to_end(partial(run, turn)) for turn in range(WARM_UP)), rounds)
            host = spread([clock.on_host(partial(run, turn)) for turn in range(number)])
            device = spread([clock.on_device(partial(run, turn), launching=host[2]) for turn in range(number)])
            figures = {
                "us": 1e6 * device[1],
                "p20, us": 1e6 * device[0],
                "p80, us": 1e6 * device[2],
                "host, us": 1e6 * host[1],
                "GB/s": 1e-9 * count / device[1],
                "share of copy bandwidth": count / device[1] / bandwidth,
                "compiling, s": compiling(),
                "tuning and the rest of the first call, s": max(0.0, first - device[1] - compiling()),
            }
            name = f"{case.name}, {direction}"
            config = ", ".join(dict.fromkeys(configs()))
            rows.append(Row(name, provider.dtype, provider.layout, case.seed, provider.name, config, figures))
    return rows


def rounds_of(seconds: float, most: int = ROUNDS) -> int:
    """How often a call that takes so long is timed."""
    return min(most, max(FEWEST, int(PATIENCE / seconds)))


def _calls(direction: str, function: Function, turns: Sequence[Inputs]) -> Callable[[int], Any]:
    """What is timed: a function of the number of the call, which decides on the inputs."""
    if direction == "forward":
        return lambda turn: function(turns[turn % len(turns)])
    if direction == "backward":
        outputs = [function(inputs) for inputs in turns]
        return lambda turn: differentiate(outputs[turn % len(turns)], turns[turn % len(turns)], retain=True)
    return lambda turn: both(function, turns[turn % len(turns)])


def on_device(inputs: Inputs, clock: Clock) -> list[Inputs]:
    """Copies of the inputs on the clock's device, of which all but one take twice the cache together."""
    size = sum(each.numel() * each.element_size() for each in tree_leaves(inputs) if isinstance(each, Tensor))

    def copy(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        moved = value.detach().to(clock.device, copy=True)
        return moved.requires_grad_(value.requires_grad)

    return [tree_map(copy, inputs) for _ in range(1 + math.ceil(2 * clock.cache_bytes / size))]


def spread(samples: Sequence[float]) -> tuple[float, float, float]:
    """The 20th percentile, the median and the 80th, linear between samples."""
    ordered = sorted(samples)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return at(0.2), at(0.5), at(0.8)


def copy_bandwidth(clock: Clock, count: int = 1 << 30, rounds: int = 20) -> float:
    """Bytes a second that a copy of `count` bytes moves, read and written ones together."""
    source = torch.zeros(count, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * count / spread([clock.on_device(lambda: target.copy_(source)) for _ in range(rounds)])[1]


@contextmanager
def compile_seconds() -> Iterator[Callable[[], float]]:
    """A function that says how long Triton's compiler ran inside: in this process, where torch.compile has others."""
    seconds = 0.0

    def add(*, times: CompileTimes, **_: Any) -> None:
        nonlocal seconds
        seconds += 1e-6 * times.total

    with mock.patch.object(triton.knobs.compilation, "listener", add):
        yield lambda: seconds


@contextmanager
def chosen_configs() -> Iterator[Callable[[], list[str]]]:
    """A function that says what was chosen for each tuned kernel that was launched inside."""
    found: dict[str, triton.Config] = {}
    configuration = tuning.configuration

    def noted(kernel: Autotuner, *arguments: Any) -> triton.Config:
        found[kernel.base_fn.__name__] = config = configuration(kernel, *arguments)
        return config

    def chosen() -> list[str]:
        return [f"{name}: {config}" for name, config in found.items()]

    with mock.patch.object(tuning, "configuration", noted):
        yield chosen

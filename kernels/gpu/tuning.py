"""Which configuration a kernel is launched with.

Every kernel lists its configurations, a sane default first. Of those that suit a launch the fastest is taken, measured
once per key and kept on disk (`kernels.gpu.choices`). Keys hold model constants exactly (channels, pooled size) and
counts that change from image to image as `bucket`s, so that one more box neither tunes nor compiles again.

The default is taken, and nothing measured, where measuring cannot be: in Triton's interpreter, without a driver, while
a CUDA graph is captured; and where MRCNN_PIN_CONFIG=1 asks for it.
"""

import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler.errors import CompileTimeAssertionFailure
from triton.runtime.autotuner import Autotuner
from triton.runtime.errors import OutOfResources, PTXASError

from kernels.gpu import choices
from kernels.gpu.capture import loading_permitted

Prune = Callable[[Sequence[triton.Config], Mapping[str, Any]], list[triton.Config]]
Key = tuple[Any, ...]

_ONE_AT_A_TIME = threading.Lock()  # two measurements would disturb each other


def bucket(count: int, floor: int = 16) -> int:
    """The smallest power of two that is at least `count` and at least `floor`."""
    return max(floor, int(triton.next_power_of_2(count)))


def within_channels(configs: Sequence[triton.Config], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """Prunes to blocks (BLOCK_C) of at most the channels there are, and to the narrowest if all are wider."""
    widest = triton.next_power_of_2(arguments["CHANNELS"])
    fitting = [config for config in configs if config.kwargs["BLOCK_C"] <= widest]
    return fitting or [min(configs, key=lambda config: config.kwargs["BLOCK_C"])]


def threads(config: triton.Config, arguments: Mapping[str, Any]) -> int:
    """Of a program; a warp of AMD's accelerators has twice as many as NVIDIA's."""
    return int(config.num_warps) * (64 if arguments.get("backend") == "hip" else 32)


def tuned(
    configs: Sequence[triton.Config], key: Sequence[str], prune: Prune | None = None, accumulates: Sequence[str] = ()
) -> Callable[[Any], Any]:
    """Decorates a kernel with its configurations.

    Args:
        configs: the default first.
        key: names of the kernel's arguments that a choice is made for.
        prune: leaves the configurations that suit the launch's arguments, by name, and at least one; None leaves all.
        accumulates: names of the tensors whose values before the launch matter to those after it. They are left as
            they are while configurations are measured.
    """

    def early_prune(
        configs: Sequence[triton.Config], named_args: Mapping[str, Any], **kwargs: Any
    ) -> list[triton.Config]:
        return prune(configs, {**named_args, **kwargs}) if prune else list(configs)

    decorator: Callable[[Any], Any] = triton.autotune(
        list(configs),
        list(key),
        prune_configs_by={"early_config_prune": early_prune},
        restore_value=list(accumulates),
    )
    return decorator


def launch(kernel: Any, grid: Any, tensors: Sequence[Any], **arguments: Any) -> None:
    """Launches a kernel, a `tuned` one with its `configuration`.

    Args:
        kernel: what `tuned` made, or a kernel with nothing to choose.
        grid: as Triton takes it, a tuple or a function of the arguments.
        tensors: the kernel's leading arguments: tensors, tuples of them, or None for one that a constant leaves unused.
        arguments: the rest, and compiler options.
    """
    if isinstance(kernel, Autotuner):
        arguments |= configuration(kernel, grid, tensors, arguments).all_kwargs()
        kernel = kernel.fn
    with loading_permitted() if _capturing() else nullcontext():
        kernel[grid](*tensors, **arguments)


def configuration(kernel: Autotuner, grid: Any, tensors: Sequence[Any], arguments: Mapping[str, Any]) -> triton.Config:
    """The configuration for a launch: the one chosen before, by this process or on disk, or else the fastest."""
    if pinned():
        return pruned_configs(kernel, tensors, arguments)[0]
    device, key = torch.cuda.current_device(), key_of(kernel, tensors, arguments)
    chosen: triton.Config | None = kernel.cache.get((device, key))
    if chosen is not None:
        return chosen
    fitting = pruned_configs(kernel, tensors, arguments)
    chosen = fitting[0] if len(fitting) == 1 else choices.find(kernel, key, fitting)
    if chosen is None and _capturing():
        return fitting[0]  # and not remembered, so that a later launch may choose
    if chosen is None:
        try:
            with _ONE_AT_A_TIME:
                chosen = kernel.cache.get((device, key)) or _fastest(kernel, grid, tensors, arguments, fitting, key)
        except torch.OutOfMemoryError:  # measuring takes memory of its own, which will not be there next time either
            chosen = fitting[0]
    kernel.cache[device, key] = chosen
    return chosen


def _fastest(
    kernel: Autotuner,
    grid: Any,
    tensors: Sequence[Any],
    arguments: Mapping[str, Any],
    fitting: list[triton.Config],
    key: Key,
) -> triton.Config:
    """Measures, and keeps the result on disk."""
    times = measure(kernel, grid, tensors, arguments, fitting)
    chosen = min(fitting, key=lambda config: times[config])
    try:
        choices.keep(kernel, key, chosen)
    except OSError as error:
        warnings.warn(f"the configuration chosen for {choices.name_of(kernel)} is not kept: {error}", stacklevel=2)
    return chosen


def measure(
    kernel: Autotuner,
    grid: Any,
    tensors: Sequence[Any],
    arguments: Mapping[str, Any],
    configs: Sequence[triton.Config],
) -> dict[triton.Config, float]:
    """Median time of the launch with each configuration in ms, infinite for one that the device has no room for.

    Results are written as by the launch itself, but what the kernel accumulates into is a copy.
    """
    copied = [
        _copy(tensor) if name in kernel.restore_value else tensor
        for name, tensor in zip(kernel.arg_names, tensors, strict=False)
    ]

    def time(config: triton.Config) -> float:
        try:
            return benchmark(lambda: kernel.fn[grid](*copied, **arguments, **config.all_kwargs()))
        except (OutOfResources, PTXASError, CompileTimeAssertionFailure):
            return float("inf")

    return {config: time(config) for config in configs}


def benchmark(call: Callable[[], None]) -> float:
    """Median time of a call in ms, with a cold L2 cache."""
    milliseconds: float = triton.testing.do_bench(call, return_mode="median")
    return milliseconds


def _copy(tensor: Tensor | tuple[Tensor, ...] | None) -> Tensor | tuple[Tensor, ...] | None:
    if tensor is None:
        return None
    return tuple(each.clone() for each in tensor) if isinstance(tensor, tuple) else tensor.clone()


def key_of(kernel: Autotuner, tensors: Sequence[Any], arguments: Mapping[str, Any]) -> Key:
    """The values of a kernel's key in a launch, and the dtypes of its tensors, None for one that is not there."""
    dtypes = [None if each is None else each.dtype for each in _flat(tensors)]
    return *[arguments[name] for name in kernel.keys], *dtypes


def _flat(tensors: Sequence[Any]) -> Iterator[Tensor | None]:
    for each in tensors:
        if isinstance(each, tuple):
            yield from each
        else:
            yield each


def pruned_configs(
    kernel: Any, tensors: Sequence[Any], arguments: Mapping[str, Any], backend: str | None = None
) -> list[triton.Config]:
    """The configurations of a `tuned` kernel that suit a launch, the default first.

    Args:
        backend: "cuda" or "hip", Triton's names; that which PyTorch was built for if None. Pruning finds it among the
            arguments.
    """
    named = dict(zip(kernel.arg_names, tensors, strict=False))
    backend = backend or ("hip" if torch.version.hip else "cuda")
    configs: list[triton.Config] = kernel.early_config_prune(kernel.configs, named, **arguments, backend=backend)
    return configs


def pinned() -> bool:
    """Whether defaults are taken and nothing timed: interpreted, MRCNN_PIN_CONFIG=1, or no driver."""
    return triton.knobs.runtime.interpret or os.environ.get("MRCNN_PIN_CONFIG") == "1" or not _has_driver()


@functools.cache
def _has_driver() -> bool:
    try:
        return bool(triton.runtime.driver.active.is_active())
    except RuntimeError:  # "0 active drivers"
        return False


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device: makes that the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()

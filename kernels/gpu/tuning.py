"""Which configuration a kernel is launched with.

Every kernel lists its configurations, a sane default first, and `triton.autotune` times them once per key.
Keys hold model constants exactly (channels, pooled size) and counts that change from image to image as
`bucket`s, so that one more box neither tunes nor compiles again.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.autotuner import Autotuner

Prune = Callable[[Sequence[triton.Config], Mapping[str, Any]], list[triton.Config]]


def bucket(count: int, floor: int = 16) -> int:
    """The smallest power of two that is at least `count` and at least `floor`."""
    return max(floor, int(triton.next_power_of_2(count)))


def tuned(configs: Sequence[triton.Config], key: Sequence[str], prune: Prune) -> Callable[[Any], Any]:
    """Decorates a kernel with its configurations.

    Args:
        configs: the default first.
        key: names of the kernel's arguments that a choice is made for.
        prune: leaves the configurations that suit the launch's arguments, by name, and at least one.
    """

    def early_prune(
        configs: Sequence[triton.Config], named_args: Mapping[str, Any], **kwargs: Any
    ) -> list[triton.Config]:
        return prune(configs, {**named_args, **kwargs})

    decorator: Callable[[Any], Any] = triton.autotune(
        list(configs), list(key), prune_configs_by={"early_config_prune": early_prune}
    )
    return decorator


def pinned() -> bool:
    """Whether defaults are taken and nothing timed: interpreted, MRCNN_PIN_CONFIG=1, or no driver."""
    return triton.knobs.runtime.interpret or os.environ.get("MRCNN_PIN_CONFIG") == "1" or not _has_driver()


@functools.cache
def _has_driver() -> bool:
    try:
        return bool(triton.runtime.driver.active.is_active())
    except RuntimeError:  # "0 active drivers"
        return False


def launch(kernel: Any, grid: Any, tensors: Sequence[Any], **arguments: Any) -> None:
    """Launches a kernel; a `tuned` one with the first configuration that pruning leaves where choices are
    `pinned`.

    Args:
        kernel: what `tuned` made, or a kernel with nothing to choose.
        grid: as Triton takes it, a tuple or a function of the arguments.
        tensors: the kernel's leading arguments: tensors, or tuples of them.
        arguments: the rest, and compiler options.
    """
    if not isinstance(kernel, Autotuner) or not pinned():
        kernel[grid](*tensors, **arguments)
        return
    config = pruned_configs(kernel, tensors, arguments)[0]
    kernel.fn[grid](*tensors, **arguments, **config.all_kwargs())


def pruned_configs(kernel: Any, tensors: Sequence[Any], arguments: Mapping[str, Any]) -> list[triton.Config]:
    """The configurations of a `tuned` kernel that suit a launch, the default first."""
    named = dict(zip(kernel.arg_names, tensors, strict=False))
    configs: list[triton.Config] = kernel.early_config_prune(kernel.configs, named, **arguments)
    return configs


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device: makes that the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()

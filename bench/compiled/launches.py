"""What launchers would launch, recorded with no GPU and no driver, to be compiled for any target."""

import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.autotuner import Autotuner

import kernels.gpu
from bench.virtual_gpu.triton_kernels import Specialized, specialize
from kernels.gpu import tuning

AMPERE = GPUTarget("cuda", 80, 32)
HOPPER = GPUTarget("cuda", 90, 32)
BLACKWELL = GPUTarget("cuda", 100, 32)
MI300 = GPUTarget("hip", "gfx942", 64)


@dataclass
class Launch:
    """What a launcher asked for. tuned: the kernel with its configurations; None if there are none."""

    kernel: triton.JITFunction
    tensors: Sequence[Any]
    arguments: dict[str, Any]
    tuned: Autotuner | None = None

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    @property
    def configs(self) -> list[triton.Config | None]:
        """Those that suit it on NVIDIA."""
        return self.configs_on(HOPPER)

    def configs_on(self, target: GPUTarget) -> list[triton.Config | None]:
        """Those that suit it on the target; [None] if there is nothing to choose."""
        if self.tuned is None:
            return [None]
        return list(tuning.pruned_configs(self.tuned, self.tensors, self.arguments, target.backend))

    def specialize(self, config: triton.Config | None, target: GPUTarget) -> Specialized:
        """The kernel as a launch with these arguments and `config` on `target` would compile it."""
        arguments = {**self.arguments, **(config.all_kwargs() if config else {})}
        return specialize(self.kernel, self.tensors, arguments, target)

    def compile(self, config: triton.Config | None, target: GPUTarget) -> CompiledKernel:
        """That, compiled."""
        return self.specialize(config, target).compile()


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launchers called inside the `with` block launch nothing; the list says what they would."""
    launches: list[Launch] = []

    def record(kernel: Any, grid: Any, tensors: Sequence[Any], **arguments: Any) -> None:
        tuned = kernel if isinstance(kernel, Autotuner) else None
        launches.append(Launch(tuned.fn if tuned else kernel, tensors, arguments, tuned))

    with mock.patch.object(tuning, "launch", record):
        yield launches


def tuned_kernels() -> list[Autotuner]:
    """All that there are, found where they are defined, by name."""
    modules = [import_module(f"kernels.gpu.{module.name}") for module in pkgutil.iter_modules(kernels.gpu.__path__)]
    found = {id(value): value for module in modules for value in vars(module).values() if isinstance(value, Autotuner)}
    return sorted(found.values(), key=name_of)


def name_of(kernel: Autotuner) -> str:
    return str(kernel.base_fn.__name__)


def launches_of(launcher: Callable[..., Any], *args: Any) -> list[Launch]:
    """What `launcher(*args)` would launch."""
    with recorded() as launches:
        launcher(*args)
    return launches

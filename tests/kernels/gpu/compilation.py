"""Compiles recorded launches with no GPU and no driver, specialised as the launch would be."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import create_function_from_signature

from kernels.gpu import tuning

AMPERE = GPUTarget("cuda", 80, 32)
HOPPER = GPUTarget("cuda", 90, 32)
MI300 = GPUTarget("hip", "gfx942", 64)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass
class Launch:
    """What a launcher asked for; `configs` of an untuned kernel is [None]."""

    kernel: triton.JITFunction
    tensors: Sequence[Any]
    arguments: dict[str, Any]
    configs: list[triton.Config | None]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    def compile(self, config: triton.Config | None, target: GPUTarget) -> CompiledKernel:
        """The kernel as a launch with these arguments and `config` on `target` would compile it."""
        arguments = {**self.arguments, **(config.all_kwargs() if config else {})}
        keywords = {name: value for name, value in arguments.items() if name in self.kernel.arg_names}
        options = {name: value for name, value in arguments.items() if name not in self.kernel.arg_names}
        backend = make_backend(target)
        bind = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        bound, specialization, bound_options = bind(*self.tensors, **keywords)
        _, signature, constants, attributes = self.kernel._pack_args(
            backend, keywords, bound, specialization, bound_options
        )
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=target, options=options)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launchers called inside the `with` block launch nothing; the list says what they would."""
    launches: list[Launch] = []

    def record(kernel: Any, grid: Any, tensors: Sequence[Any], **arguments: Any) -> None:
        configs: list[triton.Config | None] = [None]
        if isinstance(kernel, Autotuner):
            configs = list(tuning.pruned_configs(kernel, tensors, arguments))
            kernel = kernel.fn
        launches.append(Launch(kernel, tensors, arguments, configs))

    with mock.patch.object(tuning, "launch", record):
        yield launches


def launches_of(launcher: Callable[..., Any], *args: Any) -> list[Launch]:
    """What `launcher(*args)` would launch."""
    with recorded() as launches:
        launcher(*args)
    return launches


def resources(kernel: CompiledKernel) -> dict[str, int]:
    """Registers (REG) and bytes of stack (STACK), shared (SHARED) and local memory (LOCAL)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.check_output([CUOBJDUMP, "--dump-resource-usage", file.name], text=True)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}

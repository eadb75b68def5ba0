"""All tuned kernels, found where they are defined."""

import pkgutil
from importlib import import_module

from triton.runtime.autotuner import Autotuner

import kernels.gpu


def tuned_kernels() -> list[Autotuner]:
    modules = [import_module(f"kernels.gpu.{module.name}") for module in pkgutil.iter_modules(kernels.gpu.__path__)]
    found = {id(value): value for module in modules for value in vars(module).values() if isinstance(value, Autotuner)}
    return sorted(found.values(), key=name)


def name(kernel: Autotuner) -> str:
    return str(kernel.base_fn.__name__)

"""Which implementation of an operation runs: Triton kernels, eager PyTorch, or the plain reference."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

Implementation = Literal["triton", "eager", "reference"]

_chosen: ContextVar[Implementation | None] = ContextVar("kernels_implementation", default=None)


@contextmanager
def use(implementation: Implementation) -> Iterator[None]:
    """Runs every operation inside the `with` block by one implementation, for verification.

    A backward pass uses the implementation of its forward pass, wherever it runs. Under `torch.compile` the choice
    is made while tracing.

    Args:
        implementation: "triton" (a GPU, or any tensor under `TRITON_INTERPRET=1`), "eager" or "reference".

    Raises:
        ValueError: `implementation` is none of these.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation is {implementation!r}; it must be one of {get_args(Implementation)}")
    token = _chosen.set(implementation)
    try:
        yield
    finally:
        _chosen.reset(token)


@torch.compiler.assume_constant_result
def _chosen_by_use() -> Implementation | None:
    return _chosen.get()


@torch.compiler.assume_constant_result
def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def implementation_for(tensor: Tensor) -> Implementation:
    """The implementation for operations on `tensor`: what `use` asks for, else Triton where it runs, else eager.

    PyTorch calls AMD's GPUs "cuda" too.
    """
    chosen = _chosen_by_use()
    if chosen is not None:
        return chosen
    return "triton" if tensor.device.type == "cuda" or _interpreting() else "eager"


def implementation_module(implementation: str, stem: str) -> ModuleType:
    """The module that holds `implementation` of the operations in file `stem`; imported at the first call."""
    room = "gpu" if implementation == "triton" else implementation
    return import_module(f"kernels.{room}.{stem}")

"""Which implementation of an operation runs: Triton kernels, eager PyTorch, or the plain reference."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Implementation = Literal["triton", "eager", "reference"]
Choice = Implementation | Literal["auto"]

_chosen: ContextVar[Implementation | None] = ContextVar("kernels_implementation", default=None)


@contextmanager
def use(implementation: Implementation) -> Iterator[None]:
    """Runs every operation inside the `with` block by one implementation, for verification.

    A backward pass uses the implementation of its forward pass, wherever it runs. Under `torch.compile` and in
    `torch.export` what was asked for while tracing holds; if nothing was, the device decides where the graph runs.

    Args:
        implementation: "triton" (a GPU, or any tensor under `TRITON_INTERPRET=1`), "eager" or "reference".

    Raises:
        ValueError: `implementation` is none of these; operations raise it if Triton finds no driver to run by.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation is {implementation!r}; it must be one of {get_args(Implementation)}")
    token = _chosen.set(implementation)
    try:
        yield
    finally:
        _chosen.reset(token)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def asked_for() -> Choice:
    """What operations are told: the implementation that `use` asks for, or "auto" if it asks for none."""
    return _chosen.get() or "auto"  # a context variable cannot be traced


def resolved(implementation: str, device: torch.device) -> str:
    """What "auto" is on a device: Triton where it runs, else eager. PyTorch calls AMD's GPUs "cuda" too."""
    if implementation != "auto":
        return implementation
    interpreting = os.environ.get("TRITON_INTERPRET", "0") == "1"
    return "triton" if device.type == "cuda" or interpreting else "eager"


def values_may_be_read(tensor: Tensor, implementation: str) -> bool:
    """Whether a check may look at the values of `tensor`, and not only at its shape.

    On a CPU it may. A GPU would have to be waited for: there, and where its kernels run on a CPU, interpreted or
    counted, it may only if MRCNN_CHECK_VALUES=1 asks for it, and not while a CUDA graph is captured, which a wait would
    end.
    """
    if tensor.device.type == "cpu" and resolved(implementation, tensor.device) != "triton":
        return True
    if os.environ.get("MRCNN_CHECK_VALUES") != "1":
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def run(implementation: str, stem: str, function: str, device: torch.device, *arguments: Any) -> Any:
    """Calls a function of file `stem` in one implementation, which is imported at the first call.

    Autocast ends here: an operation computes in the dtypes that it says, whatever it was given.

    Args:
        implementation: see `asked_for`.

    Raises:
        ValueError: Triton is to run where it finds no driver, and is not interpreted.
    """
    implementation = resolved(implementation, device)
    room = "gpu" if implementation == "triton" else implementation
    module = import_module(f"kernels.{room}.{stem}")
    try:
        with torch.autocast(device.type, enabled=False):
            return getattr(module, function)(*arguments)
    except RuntimeError as error:
        if "0 active drivers" not in str(error):
            raise
        # Only the launch knows: tracing launches nothing, and what is launched may be caught, as `bench` does.
        raise ValueError(
            f'implementation is "triton"; on {device} it must be "eager" or "reference", as Triton finds no driver, '
            "unless it is imported under TRITON_INTERPRET=1"
        ) from error

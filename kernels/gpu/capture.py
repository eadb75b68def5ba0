"""A kernel's first launch while a CUDA graph is captured.

A launch may be captured, but loading the compiled kernel is a call that the driver refuses to a thread, and that ends
the capture, unless the thread's capture mode is relaxed (CUDA driver API, cuThreadExchangeStreamCaptureMode). Loading
is not part of the graph and orders nothing in it, so that it is safe.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED, and hipStreamCaptureModeRelaxed


@contextmanager
def loading_permitted() -> Iterator[None]:
    """Relaxes this thread's capture mode inside the `with` block; does nothing where the driver has no such call."""
    exchange = _exchange()
    mode = ctypes.c_int(RELAXED)
    if exchange is None or exchange(ctypes.byref(mode)) != 0:
        yield
        return
    try:
        yield
    finally:
        exchange(ctypes.byref(mode))  # which now holds the mode before


def _exchange() -> Any:
    """The driver's function that swaps the thread's capture mode with the one it is given."""
    library, function = (
        ("libamdhip64.so", "hipThreadExchangeStreamCaptureMode")
        if torch.version.hip
        else ("libcuda.so.1", "cuThreadExchangeStreamCaptureMode")
    )
    try:
        return getattr(ctypes.CDLL(library), function)
    except (OSError, AttributeError):
        return None

"""An operation as a problem to verify."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.verification.scenes import Scene

Outputs = Tensor | tuple[Tensor, ...]
FORMATS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Problem:
    """An operation with its arguments.

    Attributes:
        inputs: tensors by name, those in floating point rounded to the dtype that is verified; their copies in another
            precision are the truth's.
        call: of the public function, with the inputs by name. names: of its results.
        theirs: the same by torchvision and PyTorch, with contiguous inputs of at least float32.
        differentiable: inputs that have a gradient, from the first result.
        exact: whether results are selections, or values that every order of summation gives.
    """

    inputs: dict[str, Tensor]
    call: Callable[..., Outputs]
    theirs: Callable[..., Outputs]
    names: tuple[str, ...] = ("result",)
    differentiable: tuple[str, ...] = ()
    exact: bool = False


Make = Callable[[Scene, torch.dtype, str], Problem]


def maps(values: Tensor, dtype: torch.dtype, layout: str) -> Tensor:
    """Values [N, C, H, W] in a dtype and a layout of `FORMATS`."""
    return values.to(dtype).contiguous(memory_format=FORMATS[layout])

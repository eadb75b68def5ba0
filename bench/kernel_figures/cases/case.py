"""An operation on one input, with all that measuring it takes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
Function = Callable[[Inputs], tuple[Tensor, ...]]
FORMATS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
RATIO = 2


@dataclass(frozen=True)
class Case:
    """An operation on one input.

    Attributes:
        operation: a key of `OPERATIONS`. shape: what tells it from others of the operation.
        make: inputs on the CPU, their values rounded to `dtype`, given the dtype to hold them in and the layout;
            "leaves" are those that gradients are asked for, "grad" the gradient of the result, if it is no scalar.
        ours: what is measured. peer: torchvision's way to the same result, on contiguous inputs.
        least: bytes that each direction must move at least, by its name; the directions that are measured.
        exact: whether results are selections, which must be equal.
        timed_peer: torchvision's usual form, if `peer` is not that.
    """

    operation: str
    shape: str
    dtype: torch.dtype
    layout: str
    seed: int
    make: Callable[[torch.dtype, str], Inputs] = field(repr=False)
    ours: Function = field(repr=False)
    peer: Function = field(repr=False)
    least: Callable[[Inputs], dict[str, int]] = field(repr=False)
    exact: bool = False
    timed_peer: Function | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"{self.operation} {self.shape}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def inputs(self) -> Inputs:
        """As our operation takes them."""
        return self.make(self.dtype, self.layout)

    def peer_inputs(self, dtype: torch.dtype = torch.float32) -> Inputs:
        """The same values as torchvision takes them."""
        return self.make(dtype, "contiguous")


def differentiate(outputs: tuple[Tensor, ...], inputs: Inputs, retain: bool = False) -> tuple[Tensor, ...]:
    """The gradients of the leaves; none if there are none."""
    if not inputs["leaves"]:
        return ()
    grad = inputs.get("grad")
    grads = [torch.ones_like(outputs[0]) if grad is None else grad]
    return torch.autograd.grad(outputs[:1], inputs["leaves"], grads, retain_graph=retain)


def both(function: Function, inputs: Inputs) -> tuple[Tensor, ...]:
    """What a function gives, then the gradients of the leaves."""
    outputs = function(inputs)
    return (*outputs, *differentiate(outputs, inputs))

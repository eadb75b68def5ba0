"""The one rule by which results are compared; nothing has a tolerance of its own.

With inputs rounded to the dtype, the error of a result to the float64 reference may be twice that of a plain
reference with float32 boxes and accumulation, rounded to the dtype at the end (float64 for float64), plus the
dtype's epsilon of the largest value. It holds for the largest and for the root-mean-square error. Selections are exact.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """An error and what the rule allows; both infinite where an error cannot be told."""

    name: str
    error: float
    allowed: float

    @property
    def share(self) -> float:
        """Of what is allowed; infinite for any error where none is."""
        if self.error == 0:
            return 0.0
        return self.error / self.allowed if self.allowed > 0 else math.inf

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed


@dataclass(frozen=True)
class Comparison:
    """A result beside the truth.

    Attributes:
        norms: the errors. wrong: what is wrong whatever the size of an error, such as the shape; empty if nothing is.
        worst: the element with the largest error, for people.
    """

    norms: tuple[Norm, ...] = ()
    wrong: str = ""
    worst: str = ""

    @property
    def holds(self) -> bool:
        return not self.wrong and all(norm.holds for norm in self.norms)

    @property
    def share(self) -> float:
        """The largest error as a share of what is allowed."""
        return math.inf if self.wrong else max((norm.share for norm in self.norms), default=0.0)

    def __str__(self) -> str:
        """What does not hold."""
        above = [
            f"{norm.name} error {norm.error:.3e} is above {norm.allowed:.3e}" for norm in self.norms if not norm.holds
        ]
        return "; ".join([part for part in (self.wrong, *above, self.worst) if part])


def compare(result: Tensor, truth: Tensor, plain: Tensor, dtype: torch.dtype) -> Comparison:
    """The rule above.

    Args:
        result: what is judged.
        truth: in float64, from inputs that were rounded to `dtype`.
        plain: the same by a plain reference that accumulates in float32, or in float64 where `dtype` is that, rounded
            to `dtype`.
        dtype: the dtype of the result.
    """
    if not result.shape == truth.shape == plain.shape:
        return Comparison(wrong=f"the shape is {tuple(result.shape)} and not {tuple(truth.shape)}")
    if result.numel() == 0:
        return Comparison()
    true, ours, rounded = (x.detach().double().cpu() for x in (truth, result, plain))
    regular = torch.isfinite(true)
    same_elsewhere = torch.where(torch.isnan(true), torch.isnan(ours), ours == true)
    astray = torch.where(regular, ~torch.isfinite(ours), ~same_elsewhere)
    if bool(astray.any()):
        return Comparison(wrong=f"{_first(astray, ours, true)}; NaN or infinite where the truth is not, or the reverse")
    if not bool(regular.any()):
        return Comparison()
    slack = torch.finfo(dtype).eps * true[regular].abs().max().item()
    error, plain_error = (torch.where(regular, x - true, 0.0) for x in (ours, rounded))
    number = int(regular.sum())
    norms = (
        Norm("largest", _largest(error), 2 * _largest(plain_error) + slack),
        Norm("root-mean-square", _mean(error, number), 2 * _mean(plain_error, number) + slack),
    )
    return Comparison(norms, worst=_first(error.abs() == error.abs().max(), ours, true))


def compare_exactly(result: Tensor, truth: Tensor) -> Comparison:
    """Equality of every element, NaN being equal to NaN, and of shape and dtype."""
    if result.shape != truth.shape:
        return Comparison(wrong=f"the shape is {tuple(result.shape)} and not {tuple(truth.shape)}")
    if result.dtype != truth.dtype:
        return Comparison(wrong=f"the dtype is {result.dtype} and not {truth.dtype}")
    ours, true = result.detach().cpu(), truth.detach().cpu()
    differs = ours != true
    if ours.is_floating_point():
        differs &= ~(ours.isnan() & true.isnan())
    if not bool(differs.any()):
        return Comparison()
    return Comparison(wrong=f"{int(differs.sum())} of {differs.numel()} elements differ, {_first(differs, ours, true)}")


def _first(chosen: Tensor, ours: Tensor, true: Tensor) -> str:
    place = tuple(torch.nonzero(chosen)[0].tolist())
    return f"at {list(place)} {ours[place].item():.9g} and not {true[place].item():.9g}"


def _largest(x: Tensor) -> float:
    return x.abs().max().item()


def _mean(x: Tensor, number: int) -> float:
    return math.sqrt(x.square().sum().item() / number)

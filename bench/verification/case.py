"""One case of `python -m bench verify`: every implementation beside the truth."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import kernels
from bench.error_rule import Comparison, compare, compare_exactly
from bench.verification.operations import Problem
from bench.verification.places import Place, Results
from kernels.dispatch import Implementation

# An error that is so many times what is allowed is no rounding: another level was chosen, or another number of samples.
CHOSEN_OTHERWISE = 4
EPSILONS = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Finding:
    """One result of one side.

    Attributes:
        side: triton, eager, reference or torchvision. output: which result, or which gradient.
        comparison: with the truth; in `wrong` whatever else is not as it must be.
        run: of several that the side had, the one this is about.
        binding: whether it must hold; else it is for information.
    """

    side: str
    output: str
    comparison: Comparison
    run: str = ""
    binding: bool = True

    @property
    def holds(self) -> bool:
        return self.comparison.holds or not self.binding


def verify_case(problem: Problem, dtype: torch.dtype, place: Place, oracle: Implementation) -> list[Finding]:
    """What every side of a problem gives, beside the truth.

    Approximate instructions at an end of their error must not change selections, nor what shows only in values: where
    one is NaN or infinite (a score of -inf is a box that was struck), and which level a RoI is pooled from and by how
    many samples, errors far above the rule. What they do to values within `CHOSEN_OTHERWISE` is told and not judged.

    Args:
        oracle: "reference", or "eager" for shapes that are too large for it.
    """
    try:
        truth = true_results(problem, dtype, oracle)
    except Exception as error:  # whatever it is, it is the finding
        return [Finding("reference", "", _raised(error))]
    findings = []

    def judge(side: str, results: Results, run: str = "") -> None:
        for output, true in truth.items():
            comparison = true.compare(results[output].cpu())
            binding = not run or true.exact or comparison.share > CHOSEN_OTHERWISE  # infinite where a value is wrong
            findings.append(Finding(side, output, comparison, run, binding))

    judge("reference", {output: true.reference for output, true in truth.items()})
    inputs = {name: each.to(place.device) for name, each in problem.inputs.items()}

    def compute() -> Results:
        return results_of(problem, problem.call, inputs, dtype)

    try:
        seen = place.run(compute)
        findings += [Finding("triton", "", Comparison(wrong=fault)) for fault in seen.faults]
        for run, results in seen.runs.items():
            judge("triton", results, run)
    except Exception as error:
        findings.append(Finding("triton", "", _raised(error)))
    try:
        with kernels.use("eager"):
            judge("eager", compute())
    except Exception as error:
        findings.append(Finding("eager", "", _raised(error)))
    findings += [Finding("torchvision", output, true.compare_theirs()) for output, true in truth.items()]
    return findings


@dataclass(frozen=True)
class Truth:
    """What one output is compared with.

    Attributes:
        value: the truth. plain: what the error rule calls that. exact: whether nothing but the truth will do.
        reference: the oracle's own result in the inputs' dtype.
        theirs: torchvision's. their_plain: what it is judged by.
    """

    value: Tensor
    plain: Tensor
    exact: bool
    reference: Tensor
    theirs: Tensor
    their_plain: Tensor

    def compare(self, result: Tensor) -> Comparison:
        """One of our results, whose dtype and memory format count too.

        In float64 the truth is rounded as the result is: each may be as far from the exact value as the rule allows,
        and so from each other twice as far.
        """
        if result.dtype != self.reference.dtype:
            return Comparison(wrong=f"the dtype is {result.dtype} and not {self.reference.dtype}")
        if result.shape == self.reference.shape and _strides(result) != _strides(self.reference):
            return Comparison(wrong=f"the strides are {result.stride()} and not {self.reference.stride()}")
        if self.exact:
            return compare_exactly(result, self.value)
        comparison = compare(result, self.value, self.plain, result.dtype)
        if result.dtype != torch.float64:
            return comparison
        return replace(comparison, norms=tuple(replace(each, allowed=2 * each.allowed) for each in comparison.norms))

    def compare_theirs(self) -> Comparison:
        if self.exact:
            return compare_exactly(self.theirs.to(self.value.dtype), self.value)
        rounded = self.theirs.to(self.their_plain.dtype)
        return compare(rounded, self.value, self.their_plain, rounded.dtype)


def true_results(problem: Problem, dtype: torch.dtype, oracle: Implementation) -> dict[str, Truth]:
    """The truth of each output.

    Selections are those of the oracle in the inputs' dtype. Else the truth is the oracle in float64 and `plain` the
    oracle in the inputs' dtype. For float64 both are one, so the error of `plain` is put at what it is in float32, as
    much smaller as float64's epsilon is. torchvision computes in float64 and judges the truth, in float64 by the rule
    for float32: how it rounds is not in question.
    """

    def by_oracle(inputs: dict[str, Tensor]) -> Results:
        with kernels.use(oracle):
            return results_of(problem, problem.call, inputs, dtype)

    reference = by_oracle(problem.inputs)
    precision = torch.promote_types(dtype, torch.float32) if problem.exact else torch.float64
    at_least_float32 = {name: each.contiguous() for name, each in _in_precision(problem.inputs, precision).items()}
    theirs = results_of(problem, problem.theirs, at_least_float32, dtype)
    if problem.exact:
        return {output: Truth(each, each, True, each, theirs[output], each) for output, each in reference.items()}
    if dtype != torch.float64:
        value = by_oracle(_in_precision(problem.inputs, torch.float64))
        plain = their_plain = reference
    else:
        value, their_plain = reference, by_oracle(_in_precision(problem.inputs, torch.float32))
        plain = {
            output: each + (their_plain[output] - each) * EPSILONS if each.is_floating_point() else each
            for output, each in reference.items()
        }
    return {
        output: Truth(
            value[output], plain[output], not each.is_floating_point(), each, theirs[output], their_plain[output]
        )
        for output, each in reference.items()
    }


def results_of(
    problem: Problem, call: Callable[..., Tensor | tuple[Tensor, ...]], inputs: dict[str, Tensor], dtype: torch.dtype
) -> Results:
    """Results and gradients by name; the gradient that comes in has values of `dtype`."""
    leaves = {
        name: each.detach().clone().requires_grad_(name in problem.differentiable) for name, each in inputs.items()
    }
    outputs = call(**leaves)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    results = {name: each.detach() for name, each in zip(problem.names, outputs, strict=True)}
    if problem.differentiable:
        wanted = [leaves[name] for name in problem.differentiable]
        grads = torch.autograd.grad(outputs[0], wanted, _incoming(outputs[0], problem, dtype))
        results |= {f"gradient of {name}": each for name, each in zip(problem.differentiable, grads, strict=True)}
    return results


def _incoming(output: Tensor, problem: Problem, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(12)
    if problem.exact:
        values = torch.randint(-3, 4, output.shape, generator=generator).to(dtype)
    else:
        values = torch.randn(output.shape, generator=generator).to(dtype)
    last = output.ndim == 4 and not output.is_contiguous()
    return values.to(output.dtype).to(
        output.device, memory_format=torch.channels_last if last else torch.contiguous_format
    )


def _in_precision(inputs: dict[str, Tensor], precision: torch.dtype) -> dict[str, Tensor]:
    return {name: each.to(precision) if each.is_floating_point() else each for name, each in inputs.items()}


def _strides(x: Tensor) -> list[int]:
    """Those that mean something."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1] if x.numel() else []


def _raised(error: Exception) -> Comparison:
    return Comparison(wrong=f"{type(error).__name__}: {error}")

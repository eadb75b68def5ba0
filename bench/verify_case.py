"""One case of `python -m bench verify`: every implementation beside the truth."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import kernels
from bench.error_rule import Comparison, compare, compare_exactly
from bench.operations import Problem
from bench.verify_places import Place, Results
from kernels.dispatch import Implementation

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

    Approximate instructions at an end of their error must not change selections; what they do to values is told and not
    judged.

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
            comparison = true.compare(results[output].cpu(), strides=side != "torchvision")
            findings.append(Finding(side, output, comparison, run, binding=not run or true.exact))

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
    if not all(true.value is true.theirs for true in truth.values()):
        judge("torchvision", {output: true.theirs for output, true in truth.items()})
    return findings


@dataclass(frozen=True)
class Truth:
    """What one output is compared with.

    Attributes:
        value: the truth. plain: what the error rule calls that. exact: whether nothing but the truth will do.
        reference, theirs: the oracle's own result in the inputs' dtype, and torchvision's.
    """

    value: Tensor
    plain: Tensor
    exact: bool
    reference: Tensor
    theirs: Tensor

    def compare(self, result: Tensor, strides: bool = True) -> Comparison:
        """By the rule, or exactly; with `strides` the memory format counts too."""
        if strides and result.shape == self.reference.shape and _strides(result) != _strides(self.reference):
            return Comparison(wrong=f"the strides are {result.stride()} and not {self.reference.stride()}")
        if self.exact:
            return compare_exactly(result, self.value)
        if result.dtype != self.reference.dtype:
            return Comparison(wrong=f"the dtype is {result.dtype} and not {self.reference.dtype}")
        return compare(result, self.value, self.plain, result.dtype)


def true_results(problem: Problem, dtype: torch.dtype, oracle: Implementation) -> dict[str, Truth]:
    """The truth of each output.

    Selections are those of the oracle in the inputs' dtype. Else the truth is the oracle in float64 and `plain` the
    oracle in the inputs' dtype; torchvision, in float64 whatever the dtype, judges both. For float64 the truth is
    torchvision's. It rounds as `plain` does, whose error would then be nothing, so that error is put at what it is in
    float32, as much smaller as float64's epsilon is.
    """

    def by_oracle(inputs: dict[str, Tensor]) -> Results:
        with kernels.use(oracle):
            return results_of(problem, problem.call, inputs, dtype)

    reference = by_oracle(problem.inputs)
    precision = torch.promote_types(dtype, torch.float32) if problem.exact else torch.float64
    at_least_float32 = {name: each.contiguous() for name, each in _in_precision(problem.inputs, precision).items()}
    theirs = results_of(problem, problem.theirs, at_least_float32, dtype)
    theirs = {output: each.to(reference[output].dtype) for output, each in theirs.items()}
    if problem.exact:
        return {output: Truth(each, each, True, each, theirs[output]) for output, each in reference.items()}
    in_float64 = reference if dtype == torch.float64 else by_oracle(_in_precision(problem.inputs, torch.float64))
    in_float32 = by_oracle(_in_precision(problem.inputs, torch.float32)) if dtype == torch.float64 else {}
    truths = {}
    for output, each in reference.items():
        value, plain = in_float64[output], each
        if in_float32 and each.is_floating_point():
            value = theirs[output]
            plain = value + (in_float32[output].double() - each) * EPSILONS
        truths[output] = Truth(value, plain, not each.is_floating_point(), each, theirs[output])
    return truths


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

"""Nothing is measured whose result is wrong: a case's results against torchvision's, by the error rule."""

import torch
from torch import Tensor

from bench.error_rule import compare, compare_exactly
from bench.kernel_figures.cases import Case, differentiate


class WrongResult(RuntimeError):
    """What a case computed is not what torchvision computes."""


def expected(case: Case, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Results and gradients by torchvision on the CPU, computed in `dtype`."""
    inputs = case.peer_inputs(dtype)
    outputs = case.peer(inputs)
    return (*(each.detach() for each in outputs), *differentiate(outputs, inputs))


def check(case: Case, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Compares results with torchvision's on the CPU, and returns those.

    Args:
        case: what was computed.
        results: its outputs, then the gradients of its leaves.

    Raises:
        WrongResult: a selection differs, or an error is above what the rule allows (`bench.error_rule`).
    """
    results = tuple(each.detach().cpu() for each in results)
    plain = expected(case, torch.float32)
    truth = plain if case.exact else expected(case, torch.float64)
    if len(results) != len(plain):
        raise WrongResult(f"{case.name} gave {len(results)} tensors instead of {len(plain)}")
    for number, (ours, exact, rounded) in enumerate(zip(results, truth, plain, strict=True)):
        if case.exact:
            compared = compare_exactly(ours, exact.to(ours.dtype))
        else:
            compared = compare(ours, exact, rounded.to(ours.dtype), ours.dtype)
        if not compared.holds:
            raise WrongResult(f"{case.name}, {case.dtype_name} {case.layout}, seed {case.seed}, {number}: {compared}")
    return plain


def check_batched_nms(case: Case, results: tuple[Tensor, ...]) -> None:
    """Compares what torchvision's `batched_nms` keeps of a case of segmented NMS with what the case's peer keeps.

    Segment by segment, the first `max_keep` of each as sets: how ties between segments are ordered is not in question.

    Args:
        case: what was computed.
        results: indices into the boxes of all segments together, by descending score.

    Raises:
        WrongResult: a segment has other boxes.
    """
    (kept,) = (each.cpu() for each in results)
    keep, _ = expected(case, torch.float32)
    boxes = case.peer_inputs()["scores"].shape[1]
    for segment, wanted in enumerate(keep.tolist()):
        own = kept[kept // boxes == segment][: len(wanted)] % boxes
        unlike = set(own.tolist()) ^ {place for place in wanted if place >= 0}
        if unlike:
            raise WrongResult(f"{case.name}, seed {case.seed}: {len(unlike)} other boxes of segment {segment}")

"""Torchvision's usual forms are timed only if they are right, too, though their results have other shapes than ours."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.error_rule import compare, compare_exactly
from bench.kernel_figures.cases import Case
from bench.kernel_figures.checks import WrongResult, check, check_batched_nms, expected

Check = Callable[[Case, tuple[Tensor, ...]], object]
# Thresholds of torchvision's Matcher in the RPN, and what it gives an anchor below both and between them.
HIGH, LOW, BELOW, BETWEEN = 0.7, 0.3, -1, -2


def check_timed_peer(case: Case, results: tuple[Tensor, ...]) -> None:
    """Compares what `case.timed_peer` gave with what the case's `peer` gives on the CPU.

    Args:
        case: what was computed.
        results: for most as of `peer`, its outputs and gradients; for the operations in `OTHER_RESULTS` what that says.

    Raises:
        WrongResult: they differ by more than the order of ties, or than the error rule allows.
    """
    OTHER_RESULTS.get(case.operation, check)(case, tuple(each.detach().cpu() for each in results))


def _check_kept(case: Case, results: tuple[Tensor, ...]) -> None:
    """Of `batched_nms`, which leaves the order of ties open: the boxes that are kept, as a set."""
    (kept,), (wanted,) = results, expected(case, torch.float32)
    if unlike := set(kept.tolist()) ^ set(wanted.tolist()):
        raise WrongResult(f"{case.name}, seed {case.seed}: {len(unlike)} other boxes")


def _check_matches(case: Case, results: tuple[Tensor, ...]) -> None:
    """Of torchvision's Matcher: for each image the ground truth of each anchor, or a negative number for none."""
    index, overlap, forced = expected(case, torch.float32)
    free = torch.where(overlap < LOW, BELOW, torch.where(overlap < HIGH, BETWEEN, index))
    _equal(case, results, tuple(torch.where(forced, index, free)))


def _check_left(case: Case, results: tuple[Tensor, ...]) -> None:
    """Of decoding: for each image the boxes that are left, and their scores."""
    (truth, scores), (plain, _) = (expected(case, dtype) for dtype in (torch.float64, torch.float32))
    for image, (boxes, own_scores) in enumerate(zip(results[::2], results[1::2], strict=True)):
        left = scores[image].flatten() > -torch.inf
        _equal(case, (own_scores,), (scores[image].flatten()[left].to(own_scores.dtype),))
        exact, rounded = (each[image].flatten(0, -2)[left] for each in (truth, plain))
        compared = compare(boxes, exact, rounded, boxes.dtype)
        if not compared.holds:
            raise WrongResult(f"{case.name}, seed {case.seed}, boxes of image {image}: {compared}")


def _check_texts(case: Case, results: tuple[Tensor, ...]) -> None:
    """Of pasting and pycocotools: lengths and bytes of the texts, as they are on the CPU."""
    assert case.timed_peer is not None
    _equal(case, results, case.timed_peer(case.peer_inputs()))


def _equal(case: Case, results: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for number, (ours, exact) in enumerate(zip(results, wanted, strict=True)):
        compared = compare_exactly(ours, exact)
        if not compared.holds:
            raise WrongResult(f"{case.name}, seed {case.seed}, {number}: {compared}")


OTHER_RESULTS: dict[str, Check] = {
    "segmented_nms": check_batched_nms,
    "batched_nms": _check_kept,
    "match_boxes": _check_matches,
    "decode_boxes": _check_left,
    "mask_runs": _check_texts,
}

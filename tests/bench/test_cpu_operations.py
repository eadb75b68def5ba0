"""What is compared before CPU times are taken, on made-up functions."""

from dataclasses import replace

import pytest
import torch

from bench.cases import QUICK
from bench.cpu_operations import Functions, check, measure_case
from bench.kernel_figures.cases import cases
from bench.kernel_figures.checks import WrongResult


def test_selections_must_be_equal_and_their_order_only_where_it_matters() -> None:
    kept, mixed, other = torch.tensor([3, 1, 2]), torch.tensor([1, 3, 2]), torch.tensor([1, 2, 4])
    check("a", Functions(lambda: kept, lambda: kept.clone()))
    check("a", Functions(lambda: mixed, lambda: kept, ordered=False))
    for functions in (
        Functions(lambda: mixed, lambda: kept),
        Functions(lambda: other, lambda: kept, ordered=False),
        Functions(lambda: kept[:2], lambda: kept),
    ):
        with pytest.raises(WrongResult, match="a, eager beside torchvision"):
            check("a", functions)


def test_features_may_err_as_the_error_rule_allows() -> None:
    """A third in float32 is off by 1e-8, so that twice that and an epsilon of it are allowed: 6e-8."""
    truth = torch.full((9,), 1 / 3, dtype=torch.float64)
    for error, right in ((0.0, True), (3e-8, True), (1.2e-7, False)):
        ours = (truth + error).float()
        functions = Functions(lambda ours=ours: ours, lambda: truth.float(), lambda: truth)
        if right:
            check("a", functions)
        else:
            with pytest.raises(WrongResult, match="largest error"):
                check("a", functions)


@pytest.mark.parametrize("operation", ["roi_pool", "match_boxes"])
def test_a_case_is_timed_once_it_is_right(operation: str) -> None:
    """With gradients, and with a form of torchvision's to time that gives other results than those compared."""
    (case,) = cases(operations=[operation], dtypes=[torch.float32], workload=QUICK)
    pair = measure_case(case, rounds=1)
    assert pair.name == case.name
    assert min(pair.ours, pair.torchvision) > 0
    wrong = replace(case, ours=lambda inputs: tuple(each.roll(1) for each in case.ours(inputs)))
    with pytest.raises(WrongResult, match=operation):
        measure_case(wrong, rounds=1)

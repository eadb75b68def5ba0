"""The error rule, as an assertion: the only tolerance of the tests of kernels."""

import torch
from torch import Tensor

from bench.error_rule import compare


def assert_error_rule(result: Tensor, reference64: Tensor, reference_rounded: Tensor, dtype: torch.dtype) -> None:
    """Asserts the rule of `bench.error_rule`.

    Args:
        result: what is tested.
        reference64: the truth, in float64, from inputs that were rounded to `dtype`.
        reference_rounded: the same by a plain reference that accumulates in float32, or in float64 where `dtype` is
            that, rounded to `dtype`.
        dtype: the dtype of the inputs.

    Raises:
        AssertionError: shapes or places of NaN and infinities differ, or an error is too large.
    """
    assert reference64.dtype == torch.float64
    comparison = compare(result, reference64, reference_rounded, dtype)
    assert comparison.holds, str(comparison)

"""The one rule by which results are compared; nothing in the tests has a tolerance of its own.

With inputs rounded to the dtype, the error of a result to the float64 reference may be twice that of a plain
reference with float32 boxes and accumulation, rounded to the dtype at the end (float64 for float64), plus the
dtype's epsilon of the largest value. It holds for the largest and for the root-mean-square error.
"""

import torch
from torch import Tensor


def assert_error_rule(result: Tensor, reference64: Tensor, reference_rounded: Tensor, dtype: torch.dtype) -> None:
    """Asserts the rule above.

    Args:
        result: what is tested. reference64: the truth, in float64, from inputs that were rounded to `dtype`.
        reference_rounded: the same by a plain reference that accumulates in float32, or in float64 where
        `dtype` is
            that, rounded to `dtype`.
        dtype: the dtype of the inputs.

    Raises:
        AssertionError: shapes or places of NaN and infinities differ, or an error is too large.
    """
    assert reference64.dtype == torch.float64
    assert result.shape == reference64.shape == reference_rounded.shape, (result.shape, reference64.shape)
    if result.numel() == 0:
        return
    truth, ours, plain = (x.detach().double().cpu() for x in (reference64, result, reference_rounded))
    regular = torch.isfinite(truth)
    same_elsewhere = torch.where(torch.isnan(truth), torch.isnan(ours), ours == truth)
    assert bool(same_elsewhere[~regular].all()), "NaN or infinity where the reference has none, or the reverse"
    assert bool(torch.isfinite(ours[regular]).all()), "not finite where the reference is"
    if not bool(regular.any()):
        return
    slack = torch.finfo(dtype).eps * truth[regular].abs().max().item()
    ours_error, plain_error = (x[regular] - truth[regular] for x in (ours, plain))
    for name, norm in (("largest", _largest), ("root-mean-square", _root_mean_square)):
        allowed = 2 * norm(plain_error) + slack
        assert norm(ours_error) <= allowed, f"{name} error {norm(ours_error):.3e} is above {allowed:.3e}"


def _largest(x: Tensor) -> float:
    return x.abs().max().item()


def _root_mean_square(x: Tensor) -> float:
    return x.square().mean().sqrt().item()

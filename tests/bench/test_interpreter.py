"""Triton's interpreter as `verify` and the tests use it: what it leaves out changes nothing."""

from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from bench.verification.interpreter import quick_interpreter

pytestmark = pytest.mark.interpreter


@triton.jit
def _square(x):
    return x * x


@triton.jit
def _sum_of_squares(in_ptr, out_ptr, rows, LENGTH: tl.constexpr):
    total = 0.0
    for row in range(rows):
        values = tl.load(in_ptr + row * LENGTH + tl.arange(0, LENGTH))
        total += tl.sum(_square(values), 0)  # a function of this file, and one of triton.language.standard
    tl.store(out_ptr, total)


@triton.jit
def _add(number_ptr, more):
    tl.store(number_ptr, tl.load(number_ptr) + more)


def sum_of_squares(rows: int, length: int = 8) -> float:
    result = torch.zeros(1)
    _sum_of_squares[(1,)](torch.arange(float(rows * length)), result, rows, LENGTH=length)
    return result.item()


def test_results_are_the_same_and_modules_are_looked_at_once_a_launch() -> None:
    looked = []

    def count(function: object, plain: object = interpreter._patch_lang) -> object:
        looked.append(function)
        return plain(function)  # type: ignore[operator]

    with mock.patch.object(interpreter, "_patch_lang", count):
        assert sum_of_squares(3) == sum(n * n for n in range(24))
        every_time, looked = len(looked), []
        with quick_interpreter():
            assert sum_of_squares(3) == sum(n * n for n in range(24))
            assert sum_of_squares(2) == sum(n * n for n in range(16))
    assert every_time > 6
    assert len(looked) == 4


def test_integers_overflow_as_ever() -> None:
    """Triton says nothing of it, with or without what it computes for that."""
    number = torch.tensor([2**31 - 5], dtype=torch.int32)
    with quick_interpreter():
        _add[(1,)](number, 100)
    assert number.item() == 2**31 - 5 + 100 - 2**32


@pytest.mark.parametrize("fails", [False, True])
def test_triton_is_left_as_it_was(fails: bool) -> None:
    before = tl.load, tl.tensor.__add__, tl.range
    options = interpreter.interpreter_builder.options
    with quick_interpreter():
        if fails:
            with pytest.raises(interpreter.InterpreterError, match="power of 2"):
                sum_of_squares(2, length=7)
        else:
            sum_of_squares(2)
        assert (tl.load, tl.tensor.__add__, tl.range) == before
        assert sum_of_squares(1) == sum(n * n for n in range(8))
    assert (tl.load, tl.tensor.__add__, tl.range) == before
    assert interpreter.interpreter_builder.options is options

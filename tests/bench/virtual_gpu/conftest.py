"""The virtual GPU is built by a C++ compiler; where there is none its tests are skipped."""

import pytest

from bench.virtual_gpu import has_compiler


@pytest.fixture(autouse=True)
def _needs_a_compiler() -> None:
    if not has_compiler():
        pytest.skip("needs a C++ compiler (g++ or clang++)")

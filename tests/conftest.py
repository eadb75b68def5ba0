"""What every test shares: the test data, the tiers, and a closing word on what was left out."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from bench.test_data import TEST_DATA

# The same few examples at each run; HYPOTHESIS_PROFILE=thorough draws many, and others each time.
settings.register_profile("quick", max_examples=60, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves each process the tests that it can run: kernels are interpreted or compiled, never both in one."""
    other = "compiled" if INTERPRETED else "interpreter"
    kept = [item for item in items if item.get_closest_marker(other) is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    # What takes minutes starts first, so that all processes end at much the same time.
    items[:] = sorted(kept, key=lambda item: item.get_closest_marker("long") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same random numbers in whatever order and process tests run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _quick() -> Iterator[None]:
    if not INTERPRETED:
        yield
        return
    from bench.verification.interpreter import quick_interpreter

    with quick_interpreter():
        yield


@pytest.fixture
def test_data() -> Callable[[str], Path]:
    """A function from a path inside the test data (`MRCNN_TEST_DATA`) to where it lies; skips where it is not."""

    def find(name: str) -> Path:
        if not (TEST_DATA / name).exists():
            pytest.skip(f"needs the test data {name}, which is not in MRCNN_TEST_DATA")
        return TEST_DATA / name

    return find

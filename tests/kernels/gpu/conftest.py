"""Memory that a launcher allocates and no kernel writes shows: it is NaN, or a number that no result has."""

from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills what `new_empty` returns."""
    new_empty = Tensor.new_empty

    def poisoned_new_empty(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        empty = new_empty(self, *args, **kwargs)
        if empty.dtype == torch.bool:
            return empty.fill_(True)
        return empty.fill_(float("nan") if empty.is_floating_point() else torch.iinfo(empty.dtype).max)

    monkeypatch.setattr(Tensor, "new_empty", poisoned_new_empty)

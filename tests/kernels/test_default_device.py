"""A default device other than that of the tensors: everything is made where the tensors are."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from public_functions import PUBLIC_FUNCTIONS

import kernels
from kernels import dispatch, use
from kernels.dispatch import Implementation


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """The meta device, of which nothing can be read, as someone may have a GPU and compute on the CPU."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("implementation", ["eager", "reference"])
@pytest.mark.parametrize("name", PUBLIC_FUNCTIONS)
def test_every_function(name: str, implementation: Implementation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(name, implementation, monkeypatch)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", PUBLIC_FUNCTIONS)
def test_every_function_interpreted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(name, "triton", monkeypatch)


def check(name: str, implementation: Implementation, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch leaves the default device outside an operation, so it is set again inside."""
    call = PUBLIC_FUNCTIONS[name](3, torch.float32)
    run = dispatch.import_module

    class Elsewhere:
        def __init__(self, module: str) -> None:
            self.module = run(module)

        def __getattr__(self, function: str) -> Callable[..., Any]:
            def with_another_default(*arguments: Any) -> Any:
                with torch.device("meta"):
                    return getattr(self.module, function)(*arguments)

            return with_another_default

    with use(implementation):
        wanted = call.differentiate(call.function)
        monkeypatch.setattr(dispatch, "import_module", Elsewhere)
        with torch.device("meta"):
            seen = call.differentiate(call.function)
    for one, other in zip(seen, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("elsewhere")
def test_what_is_made_on_the_cpu() -> None:
    masks, boxes = torch.ones((1, 5, 5), device="cpu"), torch.tensor([[1.0, 2, 9, 9]], device="cpu")
    (encoded,) = kernels.encode_masks(masks, boxes, (12, 14))
    assert encoded["counts"]
    polygons = kernels.polygons_from_coco([[[1.0, 1, 9, 1, 9, 9]], []], 12, 14)
    assert all(each.device.type == "cpu" for each in polygons[:3])
    assert kernels.unpack_masks(kernels.rasterize_polygons(polygons))[0].sum() > 20

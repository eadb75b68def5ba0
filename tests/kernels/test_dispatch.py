"""`use` and what runs without it."""

import inspect
import threading
from importlib import import_module

import pytest
import torch
from torch import Tensor

from kernels import mask_loss, paste_masks, roi_align, use
from kernels.dispatch import Implementation, asked_for, resolved
from kernels.eager import mask_loss as eager_mask_loss
from kernels.eager import roi_align as eager_roi_align
from kernels.reference import mask_loss as reference_mask_loss
from kernels.reference import roi_align as reference_roi_align

TENSOR = torch.zeros(1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The implementations that are called, in order, as "eager roi_align"."""
    names: list[str] = []
    for room, modules in {
        "eager": (eager_roi_align, eager_mask_loss),
        "reference": (reference_roi_align, reference_mask_loss),
    }.items():
        for module in modules:
            stem = module.__name__.rpartition(".")[2]
            for function in (stem, f"{stem}_backward"):
                original = getattr(module, function)

                def recorded(*args, _original=original, _name=f"{room} {function}"):  # type: ignore[no-untyped-def]
                    names.append(_name)
                    return _original(*args)

                monkeypatch.setattr(module, function, recorded)
    return names


def pool() -> Tensor:
    features = torch.rand(1, 2, 8, 8, requires_grad=True)
    return roi_align(features, torch.tensor([[0.0, 1, 1, 6, 6]]), 2).sum()


def loss() -> Tensor:
    none = torch.zeros(1, dtype=torch.int64)
    masks = torch.ones(1, 9, 9, dtype=torch.bool)
    return mask_loss(torch.rand(1, 2, 3, 3, requires_grad=True), none, torch.tensor([[1.0, 1, 6, 6]]), masks, none)


def chosen(device: str = "cpu") -> str:
    """What an operation would run by."""
    return resolved(asked_for(), torch.device(device))


def test_default_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert chosen("cuda:1") == "triton"
    with use("eager"):
        assert chosen("cuda:1") == "eager"


@pytest.mark.parametrize(("interpreting", "expected"), [("1", "triton"), ("0", "eager"), (None, "eager")])
def test_default_on_a_cpu(monkeypatch: pytest.MonkeyPatch, interpreting: str | None, expected: str) -> None:
    if interpreting is None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    else:
        monkeypatch.setenv("TRITON_INTERPRET", interpreting)
    assert chosen() == expected


@pytest.mark.parametrize("implementation", ["triton", "eager", "reference"])
def test_use_chooses(implementation: Implementation) -> None:
    with use(implementation):
        assert chosen() == implementation


def test_use_nests_and_ends_with_its_block() -> None:
    before = chosen()
    with use("reference"):
        with use("eager"):
            assert chosen() == "eager"
        assert chosen() == "reference"
    assert chosen() == before


def test_an_error_ends_the_block_too() -> None:
    before = chosen()
    with pytest.raises(RuntimeError, match="of mine"), use("reference"):
        raise RuntimeError("of mine")
    assert chosen() == before


def test_use_does_not_reach_other_threads() -> None:
    seen: list[str] = []
    before = chosen()
    with use("reference"):
        thread = threading.Thread(target=lambda: seen.append(chosen()))
        thread.start()
        thread.join()
    assert seen == [before]


@pytest.mark.parametrize("name", ["cuda", "Eager", "", None])
def test_unknown_implementation(name: str) -> None:
    with pytest.raises(ValueError, match=r"implementation is .* must be one of"), use(name):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize(("function", "stem"), [(pool, "roi_align"), (loss, "mask_loss")])
@pytest.mark.parametrize("implementation", ["eager", "reference"])
def test_backward_uses_the_implementation_of_its_forward(
    calls: list[str], implementation: Implementation, function: type[Tensor], stem: str
) -> None:
    """Outside the block, inside another, and on another thread."""
    with use(implementation):
        function().backward()
        outside, inside_another, elsewhere = function(), function(), function()
    outside.backward()
    with use("eager" if implementation == "reference" else "reference"):
        inside_another.backward()
    thread = threading.Thread(target=elsewhere.backward)
    thread.start()
    thread.join()
    assert {name for name in calls if name.endswith("backward")} == {f"{implementation} {stem}_backward"}
    assert sum(name.endswith("backward") for name in calls) == 4


@pytest.mark.parametrize("implementation", ["eager", "reference"])
def test_autocast_changes_nothing(implementation: Implementation) -> None:
    """An operation computes in the dtypes that it says; a matrix product in bfloat16 would show."""
    generator = torch.Generator().manual_seed(0)
    logits, mask = torch.randn((1, 1, 14, 14), generator=generator), torch.rand((1, 14, 14), generator=generator)
    gt_mask = torch.rand((1, 33, 33), generator=generator) > 0.5
    box, none = torch.tensor([[1.3, 2.1, 29.7, 30.9]]), torch.zeros(1, dtype=torch.int64)

    def results() -> tuple[Tensor, Tensor]:
        return mask_loss(logits, none, box, gt_mask, none), paste_masks(mask, box, (33, 33), None)

    with use(implementation):
        plain = results()
        with torch.autocast("cpu", torch.bfloat16):
            cast = results()
    for result, same in zip(cast, plain, strict=True):
        assert result.dtype == torch.float32
        assert torch.equal(result, same)


def test_the_rooms_hold_the_same_functions() -> None:
    for stem, functions in {
        "roi_align": ["roi_align", "roi_align_backward"],
        "nms": ["segmented_nms"],
        "mask_loss": ["mask_loss", "mask_loss_with_counts", "mask_loss_backward"],
        "rasterize": ["rasterize"],
        "paste_masks": ["paste_masks"],
        "encode_masks": ["mask_runs"],
        "decode_boxes": ["decode_boxes"],
        "decode_keypoints": ["decode_keypoints"],
        "match_boxes": ["match_boxes"],
        "mask_predict": ["mask_predict", "class_logits", "mask_predict_backward"],
        "roi_pool": ["roi_pool", "roi_pool_backward"],
    }.items():
        rooms = [import_module(f"kernels.{room}.{stem}") for room in ("eager", "reference")]
        for name in functions:
            eager, reference = (inspect.signature(getattr(room, name)) for room in rooms)
            assert eager == reference


@pytest.mark.compiled
@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton finds a driver")
def test_triton_without_a_gpu() -> None:
    with use("triton"), pytest.raises(ValueError, match=r'^implementation is "triton"; on cpu it must be'):
        pool()

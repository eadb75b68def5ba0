"""Weights from every source that is recognised, and a clear word on those that are not."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from calibrated import build_peer
from safetensors.torch import save_file
from torch import Tensor, nn

from mrcnn import MaskRCNN, build_model, load_weights
from mrcnn.backbone import FrozenBatchNorm2d
from mrcnn.engine.checkpoint import CheckpointError, model_info, save_checkpoint

Build = Callable[..., MaskRCNN]
CLASSES = 3


@pytest.fixture(scope="module")
def their_state() -> dict[str, Tensor]:
    """torchvision's state dict, every value of it random."""
    state = dict(build_peer(num_classes=CLASSES).state_dict())
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(value.shape, generator=generator) for name, value in state.items()}


@pytest.fixture(scope="module")
def expected(their_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What our model then holds, by today's names; test_parity shows that it computes the same."""
    model = build_model("mask_rcnn_r50_fpn", CLASSES)
    assert load_weights(model, their_state) == []
    return model.state_dict()


def ours() -> MaskRCNN:
    return build_model("mask_rcnn_r50_fpn", CLASSES)


def legacy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names in torchvision's published file, from before layers were wrapped."""
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2.", name)
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        name = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name)
        renamed[name] = value
    return renamed


def assert_holds(model: MaskRCNN, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def _norms(state: dict[str, Tensor]) -> list[str]:
    return [name.removesuffix("running_var") for name in state if name.endswith("running_var")]


def test_frozen_norms_keep_the_epsilon_they_were_trained_with(their_state: dict[str, Tensor]) -> None:
    """torchvision's published file is of a time without an epsilon, and its builder sets it to 0 for that file."""
    tiny = {f"{norm}running_var": their_state[f"{norm}running_var"] * 1e-6 for norm in _norms(their_state)}
    state = {**their_state, **tiny}
    names = {"": "backbone.bn1.", "layer1.0.": "backbone.stages.0.0.bn1."}
    for source, arguments, eps in (
        (legacy(state), {}, 0.0),
        (state, {}, 1e-5),
        (state, {"norm_eps": 0.0}, 0.0),
        (legacy(state), {"norm_eps": 1e-3}, 1e-3),
    ):
        model = ours()
        load_weights(model, source, **arguments)
        for place, name in names.items():
            norm = model.get_submodule(name[:-1])
            assert isinstance(norm, FrozenBatchNorm2d)
            weight, variance = (
                state[f"backbone.body.{place}bn1.{kind}"].double() for kind in ("weight", "running_var")
            )
            expected = weight / torch.sqrt(variance + eps)
            torch.testing.assert_close(norm.scale_and_shift()[0].double(), expected, rtol=1e-6, atol=0)


def test_every_value_of_torchvisions_arrives(their_state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    def sums(state: dict[str, Tensor]) -> list[float]:
        return sorted(round(value.double().sum().item(), 6) for value in state.values())

    assert sums(expected) == sums(their_state)
    # A RoI is flattened as (channel, y, x) there and as (y, x, channel) here.
    theirs = their_state["roi_heads.box_head.fc6.weight"].view(1024, 256, 7, 7)
    ours = expected["roi_heads.box.fc6.weight"].view(1024, 7, 7, 256)
    assert torch.equal(ours[5, 2, 3], theirs[5, :, 2, 3])


def test_legacy_names(their_state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    state = legacy(their_state)
    assert {"rpn.head.conv.weight", "backbone.fpn.inner_blocks.0.weight", "roi_heads.mask_head.mask_fcn1.bias"} <= (
        state.keys()
    )
    build_peer(num_classes=CLASSES).load_state_dict(state)  # torchvision itself still reads these names
    model = ours()
    load_weights(model, state, norm_eps=1e-5)
    assert_holds(model, expected)


def test_batch_norms_counters_are_left_out(their_state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    model = ours()
    load_weights(model, {**their_state, "backbone.body.bn1.num_batches_tracked": torch.tensor(3)})
    assert_holds(model, expected)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_torchvisions_files(
    tmp_path: Path, their_state: dict[str, Tensor], expected: dict[str, Tensor], wrapped: bool, zipped: bool
) -> None:
    path = tmp_path / "weights.pth"
    content = {"model": their_state, "epoch": 25} if wrapped else their_state
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    model = ours()
    load_weights(model, path)
    assert_holds(model, expected)


def test_our_own_checkpoint_and_state_dict(tmp_path: Path, small_model: Build) -> None:
    trained, path = small_model(seed=1), tmp_path / "model.safetensors"
    save_checkpoint(path, trained, model_info(trained, ("background", "a", "b", "c"), (0, 1, 2, 3)))
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    for source in (path, str(path), tmp_path / "model.pt", trained.state_dict()):
        model = small_model(seed=2)
        assert load_weights(model, source) == []
        assert_holds(model, trained.state_dict())
        assert model.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_other_classes_leaves_the_predictors(their_state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    model = build_model("mask_rcnn_r50_fpn", CLASSES + 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"with 5 classes: of another shape .*other_classes=True"):
        load_weights(model, their_state)
    assert_holds(model, before)
    left = load_weights(model, their_state, other_classes=True)
    predictors = ("roi_heads.box.classes", "roi_heads.box.offsets", "roi_heads.mask.logits")
    assert sorted(left) == sorted(f"{name}.{kind}" for name in predictors for kind in ("weight", "bias"))
    assert_holds(model, {**expected, **{name: before[name] for name in left}})


class RunsCode:
    """Pickled, it makes a folder where it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [False, True])
def test_pickled_code_is_not_run(tmp_path: Path, small_model: Build, zipped: bool) -> None:
    path, proof = tmp_path / "model.pth", tmp_path / "ran"
    model = small_model()
    content = {**model.state_dict(), "extra": RunsCode(proof)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"model\.pth.*holds more than tensors"):
        load_weights(model, path)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # it would have run


@pytest.mark.parametrize("cut", [0, 1, 3, 100, 1234, 5000, 200_000])
@pytest.mark.parametrize("suffix", ["pth", "old.pth", "safetensors"])
def test_damaged_files_are_named(tmp_path: Path, small_model: Build, cut: int, suffix: str) -> None:
    model, path = small_model(), tmp_path / f"model.{suffix}"
    if suffix.endswith("pth"):
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=suffix == "pth")
    else:
        save_checkpoint(path, model, model_info(model, ("background", "a", "b", "c"), (0, 1, 2, 3)))
    whole = path.read_bytes()
    assert len(whole) > 300_000
    path.write_bytes(whole[:cut])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"model\.{suffix}"):
        load_weights(model, path)
    assert_holds(model, before)


def test_what_holds_no_weights_is_named(tmp_path: Path, small_model: Build) -> None:
    model = small_model()
    torch.save([1, 2, 3], tmp_path / "list.pth")
    torch.save({"a": "text"}, tmp_path / "text.pth")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(1000))
    (tmp_path / "pickle.pkl").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name, message in (
        ("list.pth", "no state dict"),
        ("text.pth", "no state dict"),
        ("photo.jpg", "not a checkpoint"),
        ("pickle.pkl", "pickle.pkl"),
        ("other.safetensors", "not a checkpoint written by this library"),
        ("missing.pth", "cannot be read"),
        (".", "cannot be read"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_weights(model, tmp_path / name)


def test_another_models_weights_are_named(their_state: dict[str, Tensor], small_model: Build) -> None:
    with pytest.raises(CheckpointError, match=r"mask_rcnn_r18_fpn_gn: unexpected .*`mrcnn models`"):
        load_weights(small_model(CLASSES), their_state)
    with pytest.raises(CheckpointError, match="missing backbone"):
        load_weights(ours(), nn.Linear(2, 2).state_dict())
    without = {name: value for name, value in their_state.items() if "conv5_mask" not in name}
    with pytest.raises(CheckpointError, match=r"missing roi_heads\.mask\.up\.weight"):
        load_weights(ours(), without)
    for name in ("roi_heads.box_head.fc6.weight", "backbone.body.layer1.0.conv1.weight"):
        without = {other: value for other, value in their_state.items() if other != name}
        with pytest.raises(CheckpointError, match="missing"):
            load_weights(ours(), without)


def test_weights_with_other_pool_size_are_named(their_state: dict[str, Tensor]) -> None:
    fc6 = "roi_heads.box_head.fc6.weight"
    with pytest.raises(CheckpointError, match="of another shape"):
        load_weights(ours(), {**their_state, fc6: torch.zeros(1024, 256 * 25)})

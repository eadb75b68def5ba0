"""Checkpoints: what goes in comes out, and every file that is not a sound one is named."""

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from mrcnn.engine.checkpoint import (
    FORMAT,
    CheckpointError,
    load_weights_into,
    model_info,
    read_info,
    read_tensors,
    save_checkpoint,
    write_tensors,
)

NAMES, IDS = ("background", "round", "square"), (0, 4, 9)


@pytest.fixture
def saved(tmp_path, stand_in):
    """A model and its checkpoint."""
    model = stand_in()
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, model_info(model, NAMES, IDS, step=12, note={"a": [1, 2]}))
    return model, path


def test_weights_and_description_come_back(saved, stand_in):
    model, path = saved
    other = stand_in()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    info = load_weights_into(other, path)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert (info.preset, info.class_names, info.category_ids, info.step) == ("stand_in", NAMES, IDS, 12)
    assert info.config["num_classes"] == 3
    assert info.config["anchor_sizes"] == [32, 64, 128, 256, 512]
    assert info.extra == {"note": {"a": [1, 2]}}


def test_others_may_read_a_checkpoint_as_any_other_file(saved):
    _, path = saved
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_channels_last_and_half_precision_survive(tmp_path):
    tensors = {
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "bfloat16": torch.randn(3).bfloat16(),
        "scalar": torch.tensor(7),
        "none": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
    }
    write_tensors(tmp_path / "file", tensors, {})
    read, _ = read_tensors(tmp_path / "file")
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)


def test_a_failed_write_leaves_the_old_file_and_no_other(saved, monkeypatch):
    model, path = saved
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mrcnn.engine.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, model, model_info(model, NAMES, IDS))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_dies_before_the_move_leaves_the_old_file(saved, monkeypatch):
    model, path = saved
    before = path.read_bytes()
    with torch.no_grad():
        model.head.weight.add_(1)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mrcnn.engine.checkpoint.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, model, model_info(model, NAMES, IDS))
    assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_file(saved, kept):
    _, path = saved
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is (not a checkpoint, or is )?damaged"):
        read_tensors(path)


def test_one_flipped_bit_is_found(saved, stand_in):
    _, path = saved
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        load_weights_into(stand_in(), path)


def test_pickles_are_refused_unread(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was executed",))

    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="pickled PyTorch file"):
        read_info(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="pickled PyTorch file"):
        read_info(path)


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_info(tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_info(tmp_path)
    text = tmp_path / "notes.txt"
    text.write_text("not a checkpoint at all, but long enough to have a header")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        read_info(text)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(1)}, foreign)
    with pytest.raises(CheckpointError, match="not a checkpoint written by this library"):
        read_info(foreign)
    write_tensors(tmp_path / "resume.safetensors", {"weight": torch.zeros(1)}, {"resume_step": 3})
    with pytest.raises(CheckpointError, match="file for resuming"):
        read_info(tmp_path / "resume.safetensors")


def test_a_newer_format_asks_for_an_update(saved):
    _, path = saved
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    description = json.loads(header["__metadata__"][FORMAT])
    header["__metadata__"][FORMAT] = json.dumps(description | {"version": 99})
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + length :])
    with pytest.raises(CheckpointError, match="format version 99"):
        read_info(path)


def test_another_models_weights_are_summed_up_in_one_message(saved, stand_in):
    _, path = saved
    with pytest.raises(CheckpointError) as error:
        load_weights_into(stand_in(num_classes=5), path)
    message = str(error.value)
    assert "3 classes with the background" in message
    assert "of another shape: head.weight [3, 4] instead of [5, 4]" in message

    other = torch.nn.Module()
    other.conv = torch.nn.Conv2d(3, 4, 3)
    other.extra = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError) as error:
        load_weights_into(other, path)
    assert "missing: extra.weight, extra.bias" in str(error.value)
    assert "and 2 more" in str(error.value).partition("unexpected: ")[2]

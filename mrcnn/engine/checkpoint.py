"""Checkpoints: safetensors files that say which model they hold.

A checkpoint is one safetensors file of the model's weights; its header names the preset, the configuration,
the classes and the step, so that evaluation and prediction rebuild the model from the file alone. What only a
continued training needs (raw weights, optimizer, moving average) lies in a second file of the same kind.
Nothing in either is executable: a file is tensors and JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from mrcnn.model import MaskRCNN

FORMAT = "mask-rcnn-triton"
FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, or belongs to another model."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself.

    Attributes:
        preset: name of the preset that the model was built from.
        config: the fields of the model's configuration, as JSON values.
        class_names: one name per label, the background first.
        category_ids: the data set's category id of each label, 0 for the background.
        step: optimizer steps behind these weights.
        extra: anything else worth keeping, as JSON values; for instance how the model was trained.
    """

    preset: str
    config: Mapping[str, Any]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    step: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


def model_info(
    model: MaskRCNN, class_names: Iterable[str], category_ids: Iterable[int], step: int = 0, **extra: Any
) -> CheckpointInfo:
    """Describes a model for its checkpoint."""
    config = json.loads(json.dumps(dataclasses.asdict(model.config)))
    return CheckpointInfo(
        model.config.name,
        config,
        tuple(class_names),
        tuple(category_ids),
        step,
        json.loads(json.dumps(extra)),
    )


def save_checkpoint(path: Path, model: nn.Module, info: CheckpointInfo) -> None:
    """Writes weights and description under a temporary name, then moves them to `path`.

    A reader, or a run that is killed half way, therefore never sees half a checkpoint.
    """
    write_tensors(path, model.state_dict(), dataclasses.asdict(info))


def read_info(path: Path) -> CheckpointInfo:
    """Reads a checkpoint's description without its weights.

    Raises:
        CheckpointError: if the file is no checkpoint of this library, or is damaged.
    """
    return _info(path, _read_header(path))


def load_weights_into(model: nn.Module, path: Path) -> CheckpointInfo:
    """Loads a checkpoint's weights into a model that has the same parameters.

    Raises:
        CheckpointError: if the file is no checkpoint, is damaged, or holds another model's weights; the
            message sums up what is missing, unexpected or of another shape.
    """
    tensors, header = read_tensors(path)
    info = _info(path, header)
    _check_matches(path, model.state_dict(), tensors, info)
    model.load_state_dict(tensors)
    return info


def load_model(path: Path, **overrides: Any) -> tuple[MaskRCNN, CheckpointInfo]:
    """Rebuilds a checkpoint's model, in eval mode and on the CPU.

    Args:
        path: the checkpoint.
        overrides: fields of the model's configuration to change, for instance `min_size`.

    Raises:
        CheckpointError: as `load_weights_into`, or if this version does not know the preset or a field.
    """
    from mrcnn import PRESETS, build_model

    info = read_info(path)
    if info.preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise CheckpointError(f"{path}: holds the model {info.preset!r}, which is none of {known}.")
    # A preset's own values give each field its type back: JSON turns tuples into lists.
    defaults = {f.name: getattr(PRESETS[info.preset], f.name) for f in dataclasses.fields(PRESETS[info.preset])}
    if unknown := info.config.keys() - defaults.keys():
        raise CheckpointError(
            f"{path}: was written by another version, which knew the settings {', '.join(sorted(unknown))}."
        )
    fields = {name: _like(value, defaults[name]) for name, value in info.config.items() if name != "name"}
    model = build_model(info.preset, **{**fields, **overrides})
    load_weights_into(model, path)
    return model.eval(), info


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON header as one safetensors file, by way of a temporary name beside it."""
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = {"format": FORMAT, "version": FORMAT_VERSION, "crc32": _checksum(plain), **header}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as this person's files have it; safetensors makes them private
        save_file(plain, temporary, metadata={FORMAT: json.dumps(text)})
        temporary.chmod(mode)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except SafetensorError as error:  # how the library reports a full disk
        raise OSError(f"{path}: cannot be written ({error}).") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote: the tensors on the CPU, and the header.

    Raises:
        CheckpointError: if the file is not one of ours, or is damaged.
    """
    header = _read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is damaged ({error}).") from error
    if _checksum(tensors) != header.get("crc32"):
        raise CheckpointError(f"{path}: is damaged (its content does not match its checksum).")
    return tensors, header


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as raw:
            start = raw.read(4)
        if start[:2] == b"PK" or start[:1] == b"\x80":
            raise CheckpointError(
                f"{path}: is a pickled PyTorch file, which could run code and is not opened as a checkpoint. "
                "Known weights, such as torchvision's, are read by `mrcnn.load_weights` and `train --init`."
            )
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{path}: cannot be read ({reason}).") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is not a checkpoint, or is damaged or cut short ({error}).") from error
    if FORMAT not in metadata:
        raise CheckpointError(f"{path}: is a safetensors file, but not a checkpoint written by this library.")
    try:
        header: dict[str, Any] = json.loads(metadata[FORMAT])
        version = int(header["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is damaged (its description cannot be read).") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format version {version}; this library reads up to {FORMAT_VERSION}. Update it."
        )
    return header


def _info(path: Path, header: Mapping[str, Any]) -> CheckpointInfo:
    try:
        return CheckpointInfo(
            preset=str(header["preset"]),
            config=dict(header["config"]),
            class_names=tuple(map(str, header["class_names"])),
            category_ids=tuple(map(int, header["category_ids"])),
            step=int(header["step"]),
            extra=dict(header["extra"]),
        )
    except KeyError as error:
        raise CheckpointError(
            f"{path}: describes no model (no {error}). Is it the file for resuming a training?"
        ) from error


def _check_matches(
    path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], info: CheckpointInfo
) -> None:
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    reshaped = [
        f"{name} {list(found[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if missing or unexpected or reshaped:
        lines = [
            f"{path}: holds another model's weights "
            f"(preset {info.preset}, {len(info.class_names)} classes with the background)."
        ]
        for title, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
        ):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                lines.append(f"  {title}: {', '.join(names[:3])}{more}")
        raise CheckpointError("\n".join(lines))


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        flat = tensors[name].reshape(-1)
        if flat.numel():
            value = zlib.crc32(flat.view(torch.uint8).numpy().data, value)
    return value


def _like(value: Any, default: Any) -> Any:
    """JSON's lists as the tuples that they were, at every depth."""
    if isinstance(value, list) and not isinstance(default, list):
        return tuple(_like(item, ()) for item in value)
    return value

"""Weights into a model, whichever format they are in."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch
from torch import Tensor

from mrcnn.engine.checkpoint import CheckpointError, read_tensors
from mrcnn.interop.torchvision import from_torchvision, is_torchvision

if TYPE_CHECKING:
    from mrcnn.model import MaskRCNN


def load_weights(
    model: "MaskRCNN",
    source: str | Path | Mapping[str, Tensor],
    *,
    other_classes: bool = False,
    norm_eps: float | None = None,
) -> list[str]:
    """Loads weights, recognising their format: our checkpoints, or a state dict of ours or torchvision's.

    Args:
        model: takes the weights.
        source: a safetensors checkpoint, a PyTorch file with a state dict (read without executing pickled code), or a
            state dict.
        other_classes: leaves layers as they are whose shapes differ, to train from weights for other classes.

    Returns:
        Names of the parameters left as they were.

    Raises:
        CheckpointError: the weights cannot be read, are of no known format or do not fit the model.
    """
    name, state = (
        ("the state dict", dict(source)) if isinstance(source, Mapping) else (str(source), _read(Path(source)))
    )
    if is_torchvision(state):
        state = from_torchvision(state, model.config, norm_eps)
    expected = model.state_dict()
    reshaped = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    if missing or unexpected:
        raise CheckpointError(
            f"{name}: does not hold the weights of {model.config.name}: {_some('missing', missing)}"
            f"{_some('unexpected', unexpected)}build the model that they belong to, see `mrcnn models`."
        )
    if reshaped and not other_classes:
        raise CheckpointError(
            f"{name}: does not fit {model.config.name} with {model.config.num_classes} classes: "
            f"{_some('of another shape', reshaped)}give num_classes, or other_classes=True to leave these as they are."
        )
    model.load_state_dict({**state, **{key: expected[key] for key in reshaped}})
    return reshaped


def _some(title: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{title} {', '.join(names[:3])}{more}; " if names else ""


def _read(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        start = file.read(4)
    if start[:2] != b"PK" and start[:1] != b"\x80":
        return read_tensors(path)[0]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way: TypeError, KeyError, OSError, ...
        raise CheckpointError(f"{path}: is damaged, or holds more than tensors and is not opened.") from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]  # as torchvision's training script saves it
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: holds no state dict.")
    return state


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error

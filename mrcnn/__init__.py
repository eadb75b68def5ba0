"""Mask R-CNN in compact PyTorch on Triton kernels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrcnn.config import ModelConfig
    from mrcnn.interop.load import load_weights
    from mrcnn.model import MaskRCNN, build_model
    from mrcnn.presets import PRESETS

__all__ = ["PRESETS", "MaskRCNN", "ModelConfig", "build_model", "load_weights"]

_HOME = {
    "PRESETS": "mrcnn.presets",
    "MaskRCNN": "mrcnn.model",
    "ModelConfig": "mrcnn.config",
    "build_model": "mrcnn.model",
    "load_weights": "mrcnn.interop.load",
}


def __getattr__(name: str) -> Any:
    """Imports at first use, so that `mrcnn --help` does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'mrcnn' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)

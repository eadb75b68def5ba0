"""Mask R-CNN in compact PyTorch on Triton kernels."""

from mrcnn.config import ModelConfig
from mrcnn.interop.load import load_weights
from mrcnn.model import MaskRCNN, build_model
from mrcnn.presets import PRESETS

__all__ = ["PRESETS", "MaskRCNN", "ModelConfig", "build_model", "load_weights"]

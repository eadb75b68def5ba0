"""Problems of RoIAlign and RoIPool."""

import torch

import kernels
from bench.cases import SCALES
from bench.peers import operations as peers
from bench.verification.operations.problem import Problem, maps
from bench.verification.scenes import Scene


def roi_align(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    options = (scene.pooled, scene.scale, scene.sampling_ratio, scene.aligned)
    inputs = {"input": maps(scene.features[scene.level], dtype, layout), "rois": scene.regions}
    return Problem(
        inputs,
        lambda input, rois: kernels.roi_align(input, rois, *options),
        lambda input, rois: peers.roi_align(input, rois, *options),
        differentiable=("input",),
    )


def multiscale_roi_align(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    levels = {f"P{number + 2}": maps(level, dtype, layout) for number, level in enumerate(scene.features)}
    scales = SCALES[: len(levels)]
    options = (scene.pooled, scales, scene.sampling_ratio, scene.aligned, scene.canonical_scale)
    return Problem(
        {**levels, "rois": scene.regions},
        lambda rois, **levels: kernels.multiscale_roi_align(list(levels.values()), rois, *options),
        lambda rois, **levels: peers.multiscale_roi_align(list(levels.values()), rois, *options),
        differentiable=tuple(levels),
    )


def roi_pool(scene: Scene, dtype: torch.dtype, layout: str) -> Problem:
    """Features have few different values: equal ones are frequent, and sums of gradients exact in any dtype."""
    options = (scene.pooled, scene.scale)
    few = (2 * scene.features[scene.level]).round()
    return Problem(
        {"input": maps(few, dtype, layout), "rois": scene.regions},
        lambda input, rois: kernels.roi_pool(input, rois, *options),
        lambda input, rois: peers.roi_pool(input, rois, *options),
        differentiable=("input",),
        exact=True,
    )

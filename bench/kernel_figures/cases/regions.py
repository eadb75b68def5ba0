"""Cases of RoIAlign."""

import torch
import torchvision
from torch import Tensor

import kernels
from bench.cases import FULL, SCALES, Workload, gradients, levels_of, proposals
from bench.kernel_figures.cases.case import FORMATS, RATIO, Case, Inputs


def roi_align(size: int, dtype: torch.dtype, layout: str, seed: int, workload: Workload = FULL) -> Case:
    """All levels of the pyramid, forward and backward."""
    pyramid = workload.pyramid

    def make(compute: torch.dtype, layout: str) -> Inputs:
        rois = proposals(pyramid, workload.rois_per_image, seed=seed)

        def held(tensor: Tensor) -> Tensor:
            return tensor.to(dtype).to(compute).contiguous(memory_format=FORMATS[layout])

        leaves = [held(feature).requires_grad_() for feature in pyramid.features()]
        grad = held(gradients(pyramid, size, len(rois)))
        return {"leaves": leaves, "rois": rois, "grad": grad}

    def least(inputs: Inputs) -> dict[str, int]:
        """Pixels under a sample are read, each once; of the gradients every pixel is written."""
        rois, levels, itemsize = inputs["rois"], levels_of(inputs["rois"]), inputs["grad"].element_size()
        touched = total = 0
        for level, (images, channels, height, width) in enumerate(pyramid.shapes()):
            plane = torch.zeros((images, 1, height, width), requires_grad=True)
            pooled = torchvision.ops.roi_align(plane, rois[levels == level], size, SCALES[level], RATIO)
            (weight,) = torch.autograd.grad(pooled.sum(), plane)
            touched += int((weight != 0).sum()) * channels * itemsize
            total += plane.numel() * channels * itemsize
        others = inputs["grad"].numel() * itemsize + rois.numel() * rois.element_size()
        return {"forward": touched + others, "backward": total + others}

    return Case(
        "roi_align",
        f"{size}x{size}",
        dtype,
        layout,
        seed,
        make,
        ours=lambda inputs: (kernels.multiscale_roi_align(inputs["leaves"], inputs["rois"], size, SCALES, RATIO),),
        peer=lambda inputs: (torchvision_pooler(inputs["leaves"], inputs["rois"], size),),
        least=least,
    )


def torchvision_pooler(features: list[Tensor], rois: Tensor, size: int) -> Tensor:
    """As torchvision's MultiScaleRoIAlign: level by level into one tensor [K, C, size, size]."""
    levels = levels_of(rois)
    rois = rois.to(features[0].dtype)
    pooled = features[0].new_zeros((rois.shape[0], features[0].shape[1], size, size))
    for level, feature in enumerate(features):
        members = torch.nonzero(levels == level)[:, 0]
        part = torchvision.ops.roi_align(feature, rois[members], (size, size), SCALES[level], RATIO)
        pooled = pooled.index_put((members,), part)
    return pooled

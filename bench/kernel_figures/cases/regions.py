"""Cases of RoIAlign and RoIPool."""

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


def roi_pool(dtype: torch.dtype, seed: int, workload: Workload = FULL) -> Case:
    """One level, forward and backward. Features and gradients are whole numbers: sums of such are exact in any order,
    and equal values, of which the first counts, are frequent."""
    pyramid, size, level = workload.pyramid, 7, 2
    shape = pyramid.shapes()[level]

    def make(compute: torch.dtype, layout: str) -> Inputs:
        rois = proposals(pyramid, workload.rois_per_image, seed=seed)
        feature = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        feature, grad = (
            (2 * each).round().to(compute).contiguous(memory_format=FORMATS[layout])
            for each in (feature, gradients(pyramid, size, len(rois)))
        )
        return {"leaves": [feature.requires_grad_()], "rois": rois, "grad": grad}

    def ours(inputs: Inputs) -> tuple[Tensor, ...]:
        return (kernels.roi_pool(inputs["leaves"][0], inputs["rois"], size, SCALES[level]),)

    def peer(inputs: Inputs) -> tuple[Tensor, ...]:
        (feature,) = inputs["leaves"]
        return (torchvision.ops.roi_pool(feature, inputs["rois"].to(feature.dtype), size, SCALES[level]),)

    def least(inputs: Inputs) -> dict[str, int]:
        """Pixels of boxes are read, each once; where each value is from is kept in 32 bits. Bins outside the map have
        values too, whose gradients go nowhere and need not be read."""
        (feature,), rois, grad = inputs["leaves"], inputs["rois"], inputs["grad"]
        images, channels, height, width = shape
        touched = torch.zeros((images, height, width), dtype=torch.bool)
        for image, *corners in rois.tolist():
            left, top, right, bottom = (round(corner * SCALES[level]) for corner in corners)
            touched[int(image), top : bottom + 1, left : right + 1] = True
        inside = torchvision.ops.roi_pool(torch.ones((images, 1, height, width)), rois, size, SCALES[level])
        read = int(touched.sum()) * channels * feature.element_size()
        value = grad.element_size() + 4
        return {
            "forward": read + grad.numel() * value + rois.nbytes,
            "backward": feature.nbytes + int(inside.sum()) * channels * value + rois.nbytes,
        }

    shape_name = f"{size}x{size}"
    return Case("roi_pool", shape_name, dtype, "channels last", seed, make, ours, peer, least, exact=True)

"""Bytes that the mask loss and its gradient move, beside torchvision's path.

`python -m bench.kernel_figures.mask_loss_traffic` prints them.

Two images of 800 x 1344, 128 RoIs each, 80 classes, 28 x 28. torchvision's path is its `maskrcnn_loss` and the
gradient: each operation of PyTorch with the least that it must read and write, and the RoIAlign kernel out of the
wheel on the virtual GPU. Ours is what every launch moves to and from memory there, and PyTorch's operations between.
"""

import math
import sys

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import maskrcnn_loss

import kernels
from bench.cases import Pyramid, mask_targets
from bench.kernel_figures.torchvision_counts import bytes_of_mask_loss
from bench.virtual_gpu import torchvision_kernels
from bench.virtual_gpu.intercept import Record, active
from bench.virtual_gpu.torch_operations import TorchOperation, Watch

CLASSES, SIZE = 80, 28


def logits_and_labels(rois: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits [rois, CLASSES, SIZE, SIZE] and labels [rois]."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((rois, CLASSES, SIZE, SIZE), generator=generator).to(dtype)
    return logits, torch.randint(0, CLASSES, (rois,), generator=generator)


def torchvision_bytes(boxes: Tensor, index: Tensor, masks: Tensor, images: int) -> tuple[int, list[TorchOperation]]:
    """Bytes of torchvision's loss and gradient in float32, and its operations without RoIAlign."""
    logits, labels = logits_and_labels(len(boxes))
    of_masks = torch.zeros(len(masks), dtype=torch.int64).index_copy(0, index, labels)
    masks_of = masks.chunk(images)
    indices = [each - image * len(masks_of[0]) for image, each in enumerate(index.chunk(images))]
    operations: list[TorchOperation] = []
    leaf = logits.requires_grad_()
    with Watch(operations.append, None):
        maskrcnn_loss(leaf, list(boxes.chunk(images)), list(masks_of), list(of_masks.chunk(images)), indices).backward()
    moved = bytes_of_mask_loss(operations, len(boxes), SIZE)
    for own_masks, own_boxes, own_index in zip(masks_of, boxes.chunk(images), indices, strict=True):
        rois = torch.cat([own_index[:, None].float(), own_boxes], 1)
        features = own_masks[:, None].float()
        _, launch = torchvision_kernels.roi_align_forward(features, rois, (SIZE, SIZE), 1.0, -1, False)
        moved += launch.counters.dram_bytes
    return moved, operations


def ellipses(truth: Tensor, pyramid: Pyramid, corners: int = 40) -> kernels.Polygons:
    """The objects of boxes [G, 4] as polygons in float32."""
    angle = torch.arange(corners) * (2 * math.pi / corners)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    middle, radius = (truth[:, :2] + truth[:, 2:]) / 2, (truth[:, 2:] - truth[:, :2]) / 2
    vertices = middle[:, None] + radius[:, None] * circle
    offsets = torch.arange(len(truth) + 1)
    return kernels.Polygons(vertices.flatten(0, 1), offsets * corners, offsets, pyramid.height, pyramid.width)


def ours(
    boxes: Tensor,
    index: Tensor,
    masks: Tensor | kernels.PackedMasks | kernels.Polygons,
    sampling_ratio: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Record, Record]:
    """What the loss did, with the gradient by the class channel; and what the dense gradient by all logits did."""
    logits, labels = logits_and_labels(len(boxes), dtype)
    leaf = logits.requires_grad_()
    with kernels.use("triton"), active() as forward:
        loss = kernels.mask_loss(leaf, labels, boxes, masks, index, sampling_ratio=sampling_ratio)
    with active() as backward:
        loss.backward()
    return forward, backward


def moved(record: Record) -> int:
    """Bytes of launches and of PyTorch's operations."""
    return record.counters.dram_bytes + record.operation_bytes


def main() -> int:
    torch.set_num_threads(1)
    pyramid = Pyramid()
    for seed in (4, 5, 6):
        boxes, index, truth, masks = mask_targets(pyramid, seed=seed)
        theirs, _ = torchvision_bytes(boxes, index, masks, pyramid.images)
        print(f"seed {seed}: torchvision {theirs / 1e6:.1f} MB", flush=True)
        forms: dict[str, Tensor | kernels.PackedMasks | kernels.Polygons] = {
            "uint8": masks,
            "bits": kernels.pack_masks(masks),
            "polygons": ellipses(truth, pyramid),
        }
        for name, form in forms.items():
            for sampling_ratio in (2, -1):
                forward, backward = ours(boxes, index, form, sampling_ratio)
                dense = boxes.shape[0] * CLASSES * SIZE * SIZE * 4
                print(
                    f"{name}, sampling ratio {sampling_ratio}: {moved(forward) / 1e6:.2f} MB, "
                    f"{moved(forward) / theirs:.4f}; dense gradient {moved(backward) / dense:.4f} of its own bytes"
                )
                print(forward.summary())
                print(backward.summary(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

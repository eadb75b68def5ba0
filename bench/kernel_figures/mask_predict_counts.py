"""Whether `mask_predict_loss` makes logits of all classes anywhere, forward or backward."""

import torch
from torch import Tensor

import kernels
from bench.cases import QUICK, mask_targets
from bench.error_rule import compare
from bench.kernel_figures.checks import WrongResult
from bench.kernel_figures.counts import OURS
from bench.kernel_figures.torchvision_counts import DEVICE
from bench.results import Row
from bench.virtual_gpu.counters import SECTOR_BYTES
from bench.virtual_gpu.intercept import active

ROIS, CHANNELS, CLASSES, SIZE = 8, 16, 80, 28
FIGURE = "written / logits of all classes"


def count_mask_predict_loss(seed: int) -> Row:
    """What all steps write together, beside what logits of all classes would take.

    Fewer channels than classes, so that not even all gradients together are as large; few RoIs, whose number only
    scales both.

    Raises:
        WrongResult: it differs from a convolution and torchvision's loss.
    """
    boxes, index, _, masks = mask_targets(QUICK.pyramid, ROIS // 2, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    shapes = ((ROIS, CHANNELS, SIZE, SIZE), (CLASSES, CHANNELS), (CLASSES,))
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    labels = torch.randint(0, CLASSES, (ROIS,), generator=generator)

    def leaves(dtype: torch.dtype) -> list[Tensor]:
        return [each.to(dtype).requires_grad_() for each in drawn]

    def with_all_logits(dtype: torch.dtype) -> tuple[Tensor, ...]:
        features, weight, bias = parameters = leaves(dtype)
        logits = torch.nn.functional.conv2d(features, weight[:, :, None, None], bias)
        with kernels.use("reference"):
            loss = kernels.mask_loss(logits, labels, boxes, masks, index)
        return loss.detach(), *torch.autograd.grad(loss, parameters)

    features, weight, bias = parameters = leaves(torch.float32)
    with kernels.use("triton"), active(DEVICE) as record:
        loss = kernels.mask_predict_loss(features, weight, bias, labels, boxes, masks, index)
        gradients = torch.autograd.grad(loss, parameters)
    truth, plain = with_all_logits(torch.float64), with_all_logits(torch.float32)
    for ours, exact, rounded in zip((loss.detach(), *gradients), truth, plain, strict=True):
        compared = compare(ours, exact, rounded, torch.float32)
        if not compared.holds:
            raise WrongResult(f"mask_predict_loss: {compared}")
    launched = SECTOR_BYTES * record.counters.unique_written_sectors
    written = launched + sum(each.bytes_written for each in record.operations)
    figures = {FIGURE: written / (ROIS * CLASSES * SIZE * SIZE * 4)}
    return Row("mask_predict_loss, forward and backward", "float32", "contiguous", seed, OURS, "", figures)

"""Features and RoIs for the RoIAlign kernels, and the comparison with torchvision in float64."""

import torch
import torchvision
from error_rule import assert_error_rule
from torch import Tensor
from torchvision.ops.poolers import LevelMapper

from kernels.gpu.roi_align import roi_align, roi_align_backward
from kernels.reference.roi_align import roi_align as reference_roi_align
from kernels.reference.roi_align import roi_align_backward as reference_roi_align_backward

CANONICAL_SCALE, CANONICAL_LEVEL = 56.0, 4

# Regular boxes, one across the border, one far outside, one of no size, one smaller than a pixel, one of the whole map.
ROIS = torch.tensor(
    [
        [0, 10.3, 5.2, 30.1, 33.7],
        [1, 1.7, 2.2, 21.4, 12.9],
        [1, -20.0, -10.0, 12.0, 30.0],
        [0, -900.0, -900.0, -700.0, -700.0],
        [0, 7.3, 9.1, 7.3, 9.1],
        [1, 20.2, 20.3, 21.1, 20.9],
        [0, 0.0, 0.0, 60.0, 48.0],
        [1, 30.5, 10.0, 70.3, 41.0],
    ]
)


class Case:
    """Inputs of a call, rounded to a dtype, and torchvision's answer in any precision."""

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
        rois: Tensor = ROIS,
        channels: int = 5,
        scales: tuple[float, ...] = (0.25,),
        output_size: tuple[int, int] = (3, 2),
        sampling_ratio: int = 2,
        aligned: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        shapes = [(2, channels, max(1, 12 >> level), max(1, 15 >> level)) for level in range(len(scales))]
        self.features = [
            torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=memory_format)
            for shape in shapes
        ]
        self.rois = rois.to(torch.promote_types(dtype, torch.float32))
        self.dtype, self.channels_last, self.shapes = dtype, channels_last, shapes
        self.arguments = (
            list(scales),
            output_size,
            sampling_ratio,
            aligned,
            CANONICAL_SCALE,
            CANONICAL_LEVEL,
        )
        self.grad = torch.randn((rois.shape[0], channels, *output_size), generator=generator).to(dtype)

    def torchvision(self, precision: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """Result and gradients with features and boxes in `precision`, level after level."""
        scales, output_size, sampling_ratio, aligned, *_ = self.arguments
        features = [x.to(precision, copy=True).contiguous().requires_grad_() for x in self.features]
        result = torch.zeros(self.grad.shape, dtype=precision)
        usable = torch.isfinite(self.rois).all(1) & (self.rois[:, 0] >= 0) & (self.rois[:, 0] < 2)
        levels = torch.zeros(len(self.rois), dtype=torch.int64)
        if len(features) > 1:
            mapper = LevelMapper(2, 1 + len(features), CANONICAL_SCALE, CANONICAL_LEVEL)
            levels = mapper([self.rois[:, 1:].float()])
        for level, feature in enumerate(features):
            chosen = torch.nonzero(usable & (levels == level))[:, 0]
            pooled = torchvision.ops.roi_align(
                feature, self.rois[chosen].to(precision), output_size, scales[level], sampling_ratio, aligned
            )
            result = result.index_put((chosen,), pooled)
        grads = torch.autograd.grad(result, features, self.grad.to(precision))
        return result.detach(), list(grads)

    def plain(self) -> tuple[Tensor, list[Tensor]]:
        """The reference that the error rule compares with: float32 rounded, or for float64 the project's own."""
        if self.dtype == torch.float64:
            grads = reference_roi_align_backward(self.grad, self.rois, self.shapes, self.channels_last, *self.arguments)
            return reference_roi_align(self.features, self.rois, *self.arguments), grads
        result, grads = self.torchvision(torch.float32)
        return result.to(self.dtype), [grad.to(self.dtype) for grad in grads]

    def check(self) -> None:
        truth, true_grads = self.torchvision(torch.float64)
        plain, plain_grads = self.plain()
        result = roi_align(self.features, self.rois, *self.arguments)
        self.check_format(result)
        assert_error_rule(result, truth, plain, self.dtype)
        grads = roi_align_backward(self.grad, self.rois, self.shapes, self.channels_last, *self.arguments)
        for grad, true_grad, plain_grad in zip(grads, true_grads, plain_grads, strict=True):
            self.check_format(grad)
            assert_error_rule(grad, true_grad, plain_grad, self.dtype)

    def check_format(self, result: Tensor) -> None:
        assert result.dtype == self.dtype
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        assert result.is_contiguous(memory_format=memory_format)

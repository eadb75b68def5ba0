"""Features and RoIs for `roi_pool`, and the comparison with torchvision, which is exact."""

import torch
import torchvision
from torch import Tensor

from kernels import roi_pool


def features(
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    channels: int = 5,
    seed: int = 0,
) -> Tensor:
    """Two maps of 11 x 14 with few different values: equal ones are frequent, and sums of them exact in any dtype."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-5, 6, (2, channels, 11, 14), generator=generator)
    return values.to(dtype).contiguous(memory_format=memory_format)


def rois(number: int, seed: int = 0) -> Tensor:
    """Boxes on and off the map, some turned inside out, corners on quarters of a pixel: halves of it at any scale."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(-40, 160, (number, 2), generator=generator) / 4
    size = torch.randint(-8, 160, (number, 2), generator=generator) / 4
    return torch.cat([torch.randint(0, 2, (number, 1), generator=generator), corner, corner + size], dim=1)


def check(feature: Tensor, boxes: Tensor, size: tuple[int, int], scale: float) -> None:
    """`roi_pool` and its gradient, exactly as torchvision has them in float32 (float64 for float64)."""
    compute = torch.promote_types(feature.dtype, torch.float32)
    leaf, plain = feature.requires_grad_(), feature.detach().to(compute).contiguous().requires_grad_()
    pooled, expected = (
        roi_pool(leaf, boxes, size, scale),
        torchvision.ops.roi_pool(plain, boxes.to(compute), size, scale),
    )
    assert pooled.dtype == feature.dtype
    assert torch.equal(pooled.to(compute), expected)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randint(-3, 4, expected.shape, generator=generator)
    (ours,) = torch.autograd.grad(pooled, leaf, grad.to(feature.dtype))
    (theirs,) = torch.autograd.grad(expected, plain, grad.to(compute))
    assert ours.dtype == feature.dtype
    assert ours.stride() == feature.stride()
    assert torch.equal(ours.to(compute), theirs)

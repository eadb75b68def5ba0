"""ResNet (He et al., 2015), the features of four stages C2 to C5."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["frozen_batch", "group"]

NORM_EPS = 1e-5
STAGE_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine are constants."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The same as y = scale * x + shift, [C] each."""
        scale = self.weight * (self.running_var + NORM_EPS).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, H, W]."""
        scale, shift = self.scale_and_shift()
        return x * scale[:, None, None] + shift[:, None, None]


class GroupNorm(nn.GroupNorm):
    """Group norm that keeps channels last.

    PyTorch's own gives contiguous maps on a GPU, and on a CPU its backward pass over channels-last maps takes up to 30
    times as long as over contiguous ones where groups are narrow; two changes of layout cost less.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, H, W]."""
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


def make_norm(norm: Norm, channels: int, *, last: bool = False) -> nn.Module:
    """The normalisation after a convolution. If it learns and is the last of a block, that starts as its shortcut."""
    if norm == "frozen_batch":
        return FrozenBatchNorm2d(channels)
    group_norm = GroupNorm(32, channels)
    if last:
        nn.init.zeros_(group_norm.weight)
    return group_norm


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """Convolution and norm. A frozen norm is folded into the weights: a pass over the features less."""
    if not isinstance(norm, FrozenBatchNorm2d):
        normed: Tensor = norm(conv(x))
        return normed
    scale, shift = norm.scale_and_shift()
    return F.conv2d(x, conv.weight * scale[:, None, None, None], shift, conv.stride, conv.padding)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, for ResNet-18."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = make_norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = make_norm(norm, channels, last=True)
        self.downsample = make_downsample(channels_in, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, channels_in, H, W]; [N, channels, H / stride, W / stride]."""
        y = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        y = conv_norm(y, self.conv2, self.bn2)
        return F.relu(y + shortcut(x, self.downsample), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, for ResNet-50; the stride is in the 3x3, as in torchvision."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = make_norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = make_norm(norm, channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = make_norm(norm, channels * self.expansion, last=True)
        self.downsample = make_downsample(channels_in, channels * self.expansion, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, channels_in, H, W]; [N, 4 * channels, H / stride, W / stride]."""
        y = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        y = F.relu(conv_norm(y, self.conv2, self.bn2), inplace=True)
        y = conv_norm(y, self.conv3, self.bn3)
        return F.relu(y + shortcut(x, self.downsample), inplace=True)


def make_downsample(channels_in: int, channels_out: int, stride: int, norm: Norm) -> nn.ModuleList | None:
    """The 1x1 convolution and norm of a shortcut that changes size, or None where it is the identity."""
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.ModuleList([nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), make_norm(norm, channels_out)])


def shortcut(x: Tensor, downsample: nn.ModuleList | None) -> Tensor:
    """The way around a block."""
    if downsample is None:
        return x
    conv, norm = downsample
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"a shortcut starts with {type(conv).__name__}; it must be a convolution")
    return conv_norm(x, conv, norm)


class ResNet(nn.Module):
    """The convolutional part of a ResNet, layer names as in torchvision."""

    def __init__(self, depth: Literal[18, 50], norm: Norm) -> None:
        super().__init__()
        block: Callable[[int, int, int, Norm], nn.Module] = BasicBlock if depth == 18 else Bottleneck
        expansion = BasicBlock.expansion if depth == 18 else Bottleneck.expansion
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = make_norm(norm, 64)
        self.stages = nn.ModuleList()
        channels_in = 64
        for stage, blocks in enumerate(STAGE_BLOCKS[depth]):
            channels = 64 * 2**stage
            layers = []
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(block(channels_in, channels, stride, norm))
                channels_in = channels * expansion
            self.stages.append(nn.Sequential(*layers))
        self.channels = [64 * 2**stage * expansion for stage in range(4)]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: [N, 3, H, W]; C2 to C5 with strides 4, 8, 16 and 32."""
        x = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

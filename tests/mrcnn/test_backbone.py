"""ResNets and the feature pyramid against torchvision's with the same weights."""

from collections import OrderedDict
from typing import Literal

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mrcnn.backbone import FrozenBatchNorm2d, GroupNorm, ResNet
from mrcnn.fpn import FPN


def randomise(module: nn.Module, seed: int) -> None:
    """Small random affine parameters and statistics everywhere, so that none can be forgotten unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            if value.ndim == 1:
                value.copy_(torch.rand(value.shape, generator=generator, dtype=value.dtype) * 0.4 + 0.3)
        for name, value in module.named_buffers():
            if value.is_floating_point():
                offset = 0.5 if "var" in name or "weight" in name else -0.5
                value.copy_(torch.rand(value.shape, generator=generator, dtype=value.dtype) * 0.5 + offset)


def their_resnet(depth: int, norm: str) -> nn.Module:
    build = torchvision.models.resnet18 if depth == 18 else torchvision.models.resnet50
    if norm == "group":
        return build(norm_layer=lambda channels: nn.GroupNorm(32, channels))
    return build(norm_layer=torchvision.ops.FrozenBatchNorm2d)


def our_name(name: str) -> str:
    return f"stages.{int(name[5]) - 1}{name[6:]}" if name.startswith("layer") else name


def their_features(resnet: nn.Module, x: Tensor) -> list[Tensor]:
    x = resnet.maxpool(F.relu(resnet.bn1(resnet.conv1(x))))
    features = []
    for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        x = stage(x)
        features.append(x)
    return features


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("norm", ["frozen_batch", "group"])
def test_features_and_gradients_are_torchvisions(
    depth: Literal[18, 50], norm: Literal["frozen_batch", "group"]
) -> None:
    theirs, ours = their_resnet(depth, norm).double(), ResNet(depth, norm).double()
    randomise(theirs, seed=depth)
    state = {our_name(name): value for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, result = their_features(theirs, x), ours(x)
    assert [f.shape[1] for f in result] == ours.channels
    for level, (mine, reference) in enumerate(zip(result, expected, strict=True)):
        assert mine.shape[2:] == (16 >> level, 24 >> level)
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9 * reference.abs().max().item())
    sum(f.square().mean() for f in expected).backward()
    sum(f.square().mean() for f in result).backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        if name.startswith("fc."):
            continue
        mine = gradients.pop(our_name(name))
        scale = parameter.grad.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-7, atol=1e-8 * scale)
    assert not gradients


def test_frozen_norm_is_torchvisions_and_has_nothing_to_train() -> None:
    ours, theirs = FrozenBatchNorm2d(8).double(), torchvision.ops.FrozenBatchNorm2d(8).double()
    randomise(theirs, seed=0)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    assert list(ours.parameters()) == []


@pytest.mark.parametrize("depth", [18, 50])
def test_fresh_blocks_of_group_norm_are_their_shortcuts(depth: Literal[18, 50]) -> None:
    stage = ResNet(depth, "group").stages[1]
    x = torch.rand(1, 64 if depth == 18 else 256, 8, 8)
    conv, norm = stage[0].downsample
    torch.testing.assert_close(stage(x), F.relu(norm(conv(x))))


@pytest.mark.parametrize("channels_last", [False, True])
def test_group_norm_is_pytorchs_and_keeps_channels_last(channels_last: bool) -> None:
    ours, theirs = GroupNorm(4, 12).double(), nn.GroupNorm(4, 12).double()
    randomise(theirs, seed=5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 12, 5, 6, dtype=torch.float64, requires_grad=True)
    result = ours(x.contiguous(memory_format=torch.channels_last) if channels_last else x)
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = theirs(x)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    (seen,), (wanted,) = torch.autograd.grad(result, x, grad), torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(seen, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(16, 24), (19, 13)])
def test_pyramid_is_torchvisions(size: tuple[int, int]) -> None:
    channels = [6, 8, 12, 16]
    theirs = FeaturePyramidNetwork(channels, 10, extra_blocks=LastLevelMaxPool()).double()
    ours = FPN(channels, 10).double()
    randomise(theirs, seed=3)
    names = {"inner_blocks": "lateral", "layer_blocks": "output"}
    renamed = {}
    for name, value in theirs.state_dict().items():
        blocks, level, _, kind = name.split(".")
        renamed[f"{names[blocks]}.{level}.{kind}"] = value
    ours.load_state_dict(renamed)
    generator = torch.Generator().manual_seed(4)
    features, (height, width) = [], size
    for each in channels:
        features.append(torch.randn(2, each, height, width, generator=generator, dtype=torch.float64))
        height, width = -(-height // 2), -(-width // 2)
    expected = theirs(OrderedDict((str(i), f) for i, f in enumerate(features)))
    result = ours(features)
    assert len(result) == 5
    for mine, reference in zip(result, expected.values(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)

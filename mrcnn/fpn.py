"""Feature Pyramid Network (Lin et al., 2017)."""

from torch import Tensor, nn
from torch.nn import functional as F


class FPN(nn.Module):
    """Merges C2 to C5 top down into P2 to P5, and adds P6 for the largest anchors."""

    def __init__(self, channels_in: list[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(each, channels, 1) for each in channels_in)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in channels_in)
        for conv in [*self.lateral, *self.output]:
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """C2 to C5, each [N, C_l, H_l, W_l]; P2 to P6, each [N, channels, H_l, W_l] with strides 4 to 64."""
        merged = [self.lateral[-1](features[-1])]
        for feature, lateral in zip(features[-2::-1], self.lateral[-2::-1], strict=True):
            upper = F.interpolate(merged[0], size=feature.shape[-2:], mode="nearest")
            merged.insert(0, lateral(feature) + upper)
        pyramid = [output(each) for output, each in zip(self.output, merged, strict=True)]
        return [*pyramid, F.max_pool2d(pyramid[-1], kernel_size=1, stride=2)]

"""What a training step gives the kernels: two images of 800 x 1344 with 1,024 RoIs as a trained RPN draws them.

RoIs cluster around objects whose sizes are log-normal; the pyramid has P2 to P5 with 256 channels. Everything is
seeded, and drawn in a fixed order, so that figures can be compared from one commit to the next.
"""

import math

import torch
from torch import Tensor

IMAGES, CHANNELS, HEIGHT, WIDTH = 2, 256, 800, 1344
STRIDES = (4, 8, 16, 32)
OBJECTS = 15  # an image, or a segment of NMS


def level_shapes() -> list[tuple[int, int, int, int]]:
    """The shapes [N, C, H, W] of the pyramid's levels."""
    return [(IMAGES, CHANNELS, HEIGHT // stride, WIDTH // stride) for stride in STRIDES]


def features(seed: int = 1) -> list[Tensor]:
    """The pyramid's levels, contiguous float32."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in level_shapes()]


def gradients(size: int, rois: int = 1024, seed: int = 2) -> Tensor:
    """The gradient [rois, C, size, size] of pooled features."""
    return torch.randn((rois, CHANNELS, size, size), generator=torch.Generator().manual_seed(seed))


def rois(seed: int = 4, an_image: int = 512) -> Tensor:
    """RoIs [K, 5] as image index, x1, y1, x2, y2 in pixels, image after image."""
    generator = torch.Generator().manual_seed(seed)

    def normal(count: int) -> Tensor:
        return torch.randn(count, generator=generator)

    def uniform(count: int) -> Tensor:
        return torch.rand(count, generator=generator)

    drawn = []
    for image in range(IMAGES):
        center_x, center_y = uniform(OBJECTS) * WIDTH, uniform(OBJECTS) * HEIGHT
        size = torch.exp(math.log(72) + normal(OBJECTS)).clamp(16, 600)
        shape = torch.exp(0.45 * normal(OBJECTS))
        near = torch.randint(0, OBJECTS, (an_image,), generator=generator)
        own_size = (size[near] * torch.exp(0.3 * normal(an_image))).clamp(16, 600)
        own_shape = shape[near] * torch.exp(0.2 * normal(an_image))
        width, height = own_size * own_shape.sqrt(), own_size / own_shape.sqrt()
        x = center_x[near] + 0.15 * own_size * normal(an_image)
        y = center_y[near] + 0.15 * own_size * normal(an_image)
        x1, y1 = (x - width / 2).clamp(0, WIDTH - 1), (y - height / 2).clamp(0, HEIGHT - 1)
        x2, y2 = (x + width / 2).clamp(0, WIDTH), (y + height / 2).clamp(0, HEIGHT)
        index = torch.full((an_image,), float(image))
        drawn.append(torch.stack([index, x1, y1, torch.maximum(x2, x1 + 1), torch.maximum(y2, y1 + 1)], 1))
    mixed = torch.cat(drawn)
    mixed = mixed[torch.randperm(len(mixed), generator=generator)]
    return mixed[torch.argsort(mixed[:, 0], stable=True)].contiguous()


def levels_of(boxes: Tensor) -> Tensor:
    """The pyramid's level, 0 to 3, of each RoI (Feature Pyramid Networks, equation 1)."""
    area = (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
    return torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-6)).clamp(2, 5).int() - 2


def proposals(segments: int = 10, a_segment: int = 2000, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Boxes [S, N, 4] before NMS, a segment for each image and level, and scores [S, N] that fall."""
    generator = torch.Generator().manual_seed(seed)

    def normal(count: int) -> Tensor:
        return torch.randn(count, generator=generator)

    def uniform(count: int) -> Tensor:
        return torch.rand(count, generator=generator)

    drawn = []
    for segment in range(segments):
        center_x, center_y = uniform(OBJECTS) * WIDTH, uniform(OBJECTS) * HEIGHT
        size = 16 * 2 ** (segment % 5) * torch.exp(0.5 * normal(OBJECTS))
        near = torch.randint(0, OBJECTS, (a_segment,), generator=generator)
        background = uniform(a_segment) < 0.4
        own_size = size[near] * torch.exp(0.12 * normal(a_segment))
        shape = torch.exp(0.15 * normal(a_segment))
        anywhere_x = uniform(a_segment) * WIDTH
        x = torch.where(background, anywhere_x, center_x[near] + 0.1 * own_size * normal(a_segment))
        anywhere_y = uniform(a_segment) * HEIGHT
        y = torch.where(background, anywhere_y, center_y[near] + 0.1 * own_size * normal(a_segment))
        width, height = own_size * shape.sqrt(), own_size / shape.sqrt()
        corners = [
            (x - width / 2).clamp(0, WIDTH),
            (y - height / 2).clamp(0, HEIGHT),
            (x + width / 2).clamp(0, WIDTH),
            (y + height / 2).clamp(0, HEIGHT),
        ]
        drawn.append(torch.stack(corners, 1))
    scores = torch.rand(segments * a_segment, generator=torch.Generator().manual_seed(seed + 1))
    return torch.stack(drawn), scores.view(segments, a_segment).sort(1, descending=True)[0]


def one_call(boxes: Tensor, scores: Tensor) -> Tensor:
    """Boxes [S * N, 4] as torchvision's batched_nms gives them to one call: moved apart, in the order of all scores."""
    segments, count = scores.shape
    apart = torch.arange(segments).repeat_interleave(count).float() * (WIDTH + 1)
    order = scores.reshape(-1).argsort(descending=True, stable=True)
    return (boxes.reshape(-1, 4) + apart[:, None])[order].contiguous()

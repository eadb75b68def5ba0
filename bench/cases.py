"""Inputs that are measured and verified everywhere: real FPN shapes, and RoIs as a trained RPN proposes them."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mrcnn.anchors import level_anchors

STRIDES = (4, 8, 16, 32)
SCALES = tuple(1 / stride for stride in STRIDES)


@dataclass(frozen=True)
class Pyramid:
    """A batch of images on the feature pyramid P2 to P5.

    Attributes:
        images: how many.
        height: of the padded images, in pixels.
        width: likewise.
        channels: of every level.
    """

    images: int = 2
    height: int = 800
    width: int = 1344
    channels: int = 256

    def shapes(self) -> list[tuple[int, int, int, int]]:
        """[N, C, H_l, W_l] of each level."""
        return [(self.images, self.channels, self.height // stride, self.width // stride) for stride in STRIDES]

    def features(self, seed: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Normally distributed features of each level, channels last."""
        generator = torch.Generator().manual_seed(seed)
        return [
            torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
            for shape in self.shapes()
        ]


@dataclass(frozen=True)
class Workload:
    """What one training step gives the kernels, and one step of inference.

    Attributes:
        rois_per_image: to RoIAlign. segments, boxes, max_keep: of NMS, each segment an image and level.
        mask_rois: an image, of the mask loss. classes: of its logits. mask_size: their height and width.
        truths: ground truth an image, that anchors are matched to.
        detections: an image, which get masks and keypoints. heatmap_size: height and width of a keypoint's heatmap.
    """

    pyramid: Pyramid = field(default_factory=Pyramid)
    rois_per_image: int = 512
    segments: int = 10
    boxes: int = 2_000
    max_keep: int = 1_000
    mask_rois: int = 128
    classes: int = 80
    mask_size: int = 28
    truths: int = 20
    detections: int = 100
    heatmap_size: int = 56

    @property
    def levels(self) -> int:
        """Segments of an image."""
        return self.segments // self.pyramid.images

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image that padding has made one of the pyramid: 800 and 1333."""
        return self.pyramid.height, self.pyramid.width - 11


FULL = Workload()
QUICK = Workload(Pyramid(2, 256, 320, 64), 32, 4, 300, 100, 16, 8, 14, 5, 10, 14)


def proposals(pyramid: Pyramid, per_image: int = 512, clusters: int = 15, seed: int = 4) -> Tensor:
    """RoIs [K, 5] as a trained RPN proposes them: clustered around objects, many of them small.

    Objects of each image have a log-normal size about 72 pixels and aspect ratio about 1. Proposals belong to a random
    object and lie about it, their centre off by 0.15 and their size by a factor of about 1.35. RoIs come image by
    image, in random order within.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(number: int) -> Tensor:
        return torch.randn(number, generator=generator)

    def uniform(number: int) -> Tensor:
        return torch.rand(number, generator=generator)

    height, width = pyramid.height, pyramid.width
    rois = []
    for image in range(pyramid.images):
        object_x, object_y = uniform(clusters) * width, uniform(clusters) * height
        object_size = torch.exp(math.log(72) + normal(clusters)).clamp(16, 600)
        object_ratio = torch.exp(0.45 * normal(clusters))
        of = torch.randint(0, clusters, (per_image,), generator=generator)
        size = (object_size[of] * torch.exp(0.3 * normal(per_image))).clamp(16, 600)
        ratio = object_ratio[of] * torch.exp(0.2 * normal(per_image))
        roi_width, roi_height = size * ratio.sqrt(), size / ratio.sqrt()
        x = object_x[of] + 0.15 * size * normal(per_image)
        y = object_y[of] + 0.15 * size * normal(per_image)
        x1, x2 = (x - roi_width / 2).clamp(0, width - 1), (x + roi_width / 2).clamp(0, width)
        y1, y2 = (y - roi_height / 2).clamp(0, height - 1), (y + roi_height / 2).clamp(0, height)
        index = torch.full((per_image,), float(image))
        rois.append(torch.stack([index, x1, y1, torch.maximum(x2, x1 + 1), torch.maximum(y2, y1 + 1)], dim=1))
    together = torch.cat(rois)
    together = together[torch.randperm(len(together), generator=generator)]
    return together[torch.argsort(together[:, 0], stable=True)].contiguous()


def gradients(pyramid: Pyramid, size: int, rois: int = 1024, seed: int = 2) -> Tensor:
    """Normally distributed gradients of pooled features [K, C, size, size], contiguous."""
    return torch.randn((rois, pyramid.channels, size, size), generator=torch.Generator().manual_seed(seed))


def levels_of(rois: Tensor) -> Tensor:
    """Pyramid level of each RoI [K], 0 for P2 (Feature Pyramid Networks, equation 1)."""
    area = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
    return torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-6)).clamp(2, 5).long() - 2


def rpn_boxes(segments: int, number: int, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Boxes [S, N, 4] and scores [S, N] as an RPN gives them to non-maximum suppression, a segment an image and level.

    Sizes double from level to level; of the boxes of a level 60% crowd around 15 objects and the rest are anywhere.
    Scores descend within a segment and have no meaning.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    def uniform(size: int) -> Tensor:
        return torch.rand(size, generator=generator)

    clusters, image = 15, torch.tensor([1344.0, 800.0]).repeat(2)
    boxes = []
    for segment in range(segments):
        object_x, object_y = uniform(clusters) * image[0], uniform(clusters) * image[1]
        object_size = 16 * 2 ** (segment % 5) * torch.exp(0.5 * normal(clusters))
        of = torch.randint(0, clusters, (number,), generator=generator)
        anywhere = uniform(number) < 0.4
        size = object_size[of] * torch.exp(0.12 * normal(number))
        ratio = torch.exp(0.15 * normal(number))
        x = torch.where(anywhere, uniform(number) * image[0], object_x[of] + 0.1 * size * normal(number))
        y = torch.where(anywhere, uniform(number) * image[1], object_y[of] + 0.1 * size * normal(number))
        half_width, half_height = size * ratio.sqrt() / 2, size / ratio.sqrt() / 2
        corners = torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=1)
        boxes.append(torch.minimum(corners.clamp(min=0), image))
    scores = torch.rand(segments * number, generator=torch.Generator().manual_seed(seed + 1)).view(segments, number)
    return torch.stack(boxes), scores.sort(dim=1, descending=True).values


def one_call(boxes: Tensor, scores: Tensor) -> Tensor:
    """Boxes [S * N, 4] of S segments as torchvision's batched_nms gives them to one call of nms.

    Segments lie side by side, further apart than any box reaches, and all boxes are in descending order of score.
    """
    segments, number = scores.shape
    apart = torch.arange(segments).repeat_interleave(number).float() * (1344 + 1)
    order = scores.flatten().argsort(descending=True, stable=True)
    return (boxes.reshape(-1, 4) + apart[:, None])[order].contiguous()


def mask_targets(pyramid: Pyramid, per_image: int = 128, objects: int = 15, seed: int = 4) -> tuple[Tensor, ...]:
    """RoIs that a mask branch trains on, about the ground truth that each of them belongs to.

    Ground truth has boxes as `proposals` draws them, and its mask is the ellipse inside. The centre of a RoI is off by
    0.05 of its object's size and its own size by a factor of about 1.1, an overlap of the kind that makes positives.

    Returns:
        RoIs [K, 4], the masks' index [K] int64, boxes [G, 4] of the ground truth, masks [G, H, W] uint8, image after
        image.
    """
    generator = torch.Generator().manual_seed(seed)
    truth = proposals(pyramid, objects, objects, seed)[:, 1:]
    of = [torch.randint(0, objects, (per_image,), generator=generator) for _ in range(pyramid.images)]
    index = torch.cat([each + image * objects for image, each in enumerate(of)])
    center, size = (truth[:, :2] + truth[:, 2:])[index] / 2, (truth[:, 2:] - truth[:, :2])[index]
    center = center + 0.05 * size * torch.randn(center.shape, generator=generator)
    size = size * torch.exp(0.1 * torch.randn(size.shape, generator=generator))
    edge = torch.tensor([pyramid.width, pyramid.height], dtype=torch.float32)
    low, high = ((center + sign * size / 2).clamp(min=0).minimum(edge) for sign in (-1, 1))
    x1, y1, x2, y2 = truth.T[:, :, None]
    across = (torch.arange(pyramid.width) + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2)
    down = (torch.arange(pyramid.height) + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)
    masks = across.square()[:, None, :] + down.square()[:, :, None] < 1
    return torch.cat([low, high], 1), index, truth.contiguous(), masks.to(torch.uint8)


def fpn_anchors(pyramid: Pyramid) -> Tensor:
    """Anchors [N, 4] of P2 to P6 as Feature Pyramid Networks has them: sides of 32 to 512 pixels, three ratios."""
    levels = []
    for stride in (*STRIDES, 64):
        extent = math.ceil(pyramid.height / stride), math.ceil(pyramid.width / stride)
        levels.append(level_anchors(extent, (stride, stride), 8.0 * stride, (0.5, 1.0, 2.0), torch.device("cpu")))
    return torch.cat(levels)


def mask_probabilities(number: int, size: int, seed: int = 0) -> Tensor:
    """Masks [number, size, size] of one piece as a mask branch predicts them: an ellipse, its edge soft and uneven."""
    generator = torch.Generator().manual_seed(seed)
    place = (torch.arange(size) + 0.5) * 2 / size - 1
    radius = 0.7 + 0.3 * torch.rand((2, number, 1, 1), generator=generator)
    distance = (place / radius[0]).square() + (place[:, None] / radius[1]).square()
    return torch.sigmoid(6 * (1 - distance) + 0.3 * torch.randn((number, size, size), generator=generator))


def keypoint_heatmaps(boxes: Tensor, size: int, keypoints: int = 17, seed: int = 0) -> Tensor:
    """Logits [K, keypoints, size, size] with a peak for each keypoint, for boxes [K, 4].

    Those of a box are drawn again where two of its pixels are so nearly the largest that rounding would decide.
    """
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(size) - size / 2
    far = axis.square() + axis[:, None].square()
    heatmaps = torch.empty((len(boxes), keypoints, size, size))
    for heatmap, box in zip(heatmaps, boxes, strict=True):
        width, height = (box[2:] - box[:2]).clamp(min=1).ceil().int().tolist()
        clear = False
        while not clear:
            peak = 8 * torch.exp(-far / (2 * (size / 20) ** 2)) + 0.5 * torch.randn(heatmap.shape, generator=generator)
            for each, shift in zip(peak, torch.randint(0, size, (keypoints, 2), generator=generator), strict=True):
                each.copy_(each.roll(shift.tolist(), (0, 1)))
            resized = interpolate(peak.double()[None], size=(height, width), mode="bicubic", align_corners=False)
            first, second = resized[0].flatten(1).topk(2).values.unbind(1)
            clear = bool((first - second > 1e-4).all())
        heatmap.copy_(peak)
    return heatmaps

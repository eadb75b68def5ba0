"""The shapes that operations are verified on, by name: a detector's images, feature maps, boxes and masks."""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from bench.cases import SCALES, Pyramid, proposals, rpn_boxes

NAN, INF = float("nan"), float("inf")
Size = Literal["tiny", "small", "full"]
Kind = Literal["proposals", "degenerate", "not finite", "far outside", "boundaries"]


@dataclass(frozen=True)
class Scene:
    """What one verified case is about; each operation takes of it what it needs.

    Attributes:
        name: that `--shape` picks.
        pyramid: images and the feature maps P2 to P5 over them.
        shrink: how much smaller than a detector's images, objects and boxes are, so that RoIs are of all levels.
        rois: an image.
        boxes: how RoIs lie.
        pooled: output height and width of RoIAlign and RoIPool. sampling_ratio, aligned: of RoIAlign.
        level: of the pyramid, for operations on one feature map.
        classes, mask_side: of mask logits.
        candidates: boxes in each of two segments of NMS, and anchors. max_keep: of NMS.
        truths: boxes and masks of ground truth an image. losses: that are computed, each of other RoIs.
        full: whether the reference, which loops in Python, would take too long.
    """

    name: str
    pyramid: Pyramid = field(default_factory=lambda: Pyramid(2, 64, 96, 32))
    shrink: int = 1
    rois: int = 6
    boxes: Kind = "proposals"
    pooled: tuple[int, int] = (7, 7)
    sampling_ratio: int = 2
    aligned: bool = False
    level: int = 0
    classes: int = 5
    mask_side: int = 14
    candidates: int = 100
    max_keep: int = 40
    truths: int = 4
    losses: int = 8
    full: bool = False

    @property
    def scale(self) -> float:
        """Feature pixels per image pixel of `level`."""
        return SCALES[self.level]

    @property
    def canonical_scale(self) -> float:
        """The size of a RoI on level 4."""
        return 224 / self.shrink

    @cached_property
    def features(self) -> list[Tensor]:
        """Normally distributed [N, C, H_l, W_l] of each level, float32."""
        return [level for level in self.pyramid.features() if level.numel()]

    @cached_property
    def regions(self) -> Tensor:
        """RoIs [K, 5], float32."""
        height, width = float(self.pyramid.height), float(self.pyramid.width)
        large = replace(self.pyramid, height=self.shrink * self.pyramid.height, width=self.shrink * self.pyramid.width)
        drawn = proposals(large, self.rois) if self.rois else torch.zeros((0, 5))
        drawn[:, 1:] /= self.shrink
        lists = {
            "proposals": [],
            "degenerate": [  # no width, no height, neither, turned around, smaller than a pixel, the whole image
                [7.3, 3.4, 7.3, 20.1],
                [7.2, 9.1, 19.2, 9.1],
                [11.3, 12.1, 11.3, 12.1],
                [20.3, 20.2, 10.4, 9.7],
                [5.1, 20.2, 20.4, 9.7],
                [11.2, 12.1, 11.6, 12.9],
                [0.3, 0.2, width - 0.4, height - 0.3],
            ],
            "not finite": [
                [NAN, 1.2, 20.3, 20.1],
                [1.1, 1.2, INF, 20.3],
                [-INF, 1.2, 20.3, INF],
                [1.1, NAN, 20.1, -INF],
            ],
            "far outside": [
                [-900.3, -900.2, -700.1, -700.4],
                [-20.3, -10.2, 12.1, 30.3],
                [width - 9.3, height - 8.2, width + 40.3, height + 50.1],
                [5e4 + 3, 3.2, 5e4 + 40, 9.3],
                [4.1, -6e4, 12.3, -5.99e4],
                [-20.2, -30.3, width + 90.4, height + 70.8],
            ],
            "boundaries": self._boundaries(),
        }
        extra = torch.tensor(lists[self.boxes]).view(-1, 4)
        image = torch.arange(len(extra)) % self.pyramid.images
        return torch.cat([torch.cat([image[:, None].float(), extra], dim=1), drawn])

    def _boundaries(self) -> list[list[float]]:
        """Where the last bit of a quotient would decide: whole pixels in each bin, of RoIs and of masks; sides from
        which on it is another level; overlaps of exactly 1/2 and 7/10."""
        rows, columns = (size / self.scale for size in self.pooled)
        bins = [(rows, columns), (float(self.mask_side), float(self.mask_side))]
        whole = [[4.0, 8, 4 + times * width, 8 + times * height] for height, width in bins for times in (1, 2, 3)]
        sides = [times * self.canonical_scale for times in (0.25, 0.5, 1)]
        edges = [[2, 1, 2 + side * longer, 1 + side / longer] for side in sides for longer in (1.0, 2.0)]
        pairs = [[x, 8, x + 10, 8 + height] for x, least in ((20.0, 7.0), (40.0, 5.0)) for height in (10.0, least)]
        return [*pairs, *whole, *edges]

    @cached_property
    def segments(self) -> tuple[Tensor, Tensor]:
        """Boxes [2, N, 4] and scores [2, N] in no order, with equal scores among them."""
        boxes, scores = rpn_boxes(2, self.candidates)
        order = torch.rand(scores.shape, generator=_generator(3)).argsort(dim=1)
        boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4)).clone()
        scores = scores.gather(1, order).clone()
        scores[:, ::5] = (scores[:, ::5] * 8).round() / 8
        odd = self.regions[:, 1:] if self.boxes != "proposals" else boxes[0, :0]
        count = min(len(odd), self.candidates)
        for start in (0, count):  # each of them twice
            boxes[:, start : start + count] = odd[: len(boxes[0, start : start + count])]
        if self.boxes == "boundaries":
            scores[:, : 2 * count] += 1  # so that they count, however few are kept
        if self.boxes == "not finite":
            scores[0, 1:9:3], scores[1, :9:3], scores[0, 0] = -INF, NAN, INF
        return boxes, scores

    @cached_property
    def masks(self) -> Tensor:
        """Ground truth [G, H, W], uint8: an ellipse each, and noise."""
        height, width = self.pyramid.height, self.pyramid.width
        generator = _generator(4)
        center, radius = torch.rand((2, self.truths, 2, 1, 1), generator=generator)
        y = torch.arange(height)[:, None] / height - center[:, 0]
        x = torch.arange(width) / width - center[:, 1]
        inside: Tensor = (y / (0.1 + radius[:, 0] / 2)) ** 2 + (x / (0.1 + radius[:, 1] / 2)) ** 2 < 1
        return (inside ^ (torch.rand(inside.shape, generator=generator) < 0.02)).to(torch.uint8)

    @cached_property
    def polygons(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ground truth: vertices [P, 2], float32, offsets of parts and of instances, as `kernels.Polygons` has them.

        An instance has one to three parts, which cross themselves, overlap, are tiny or partly outside; of every second
        part the vertices are on tenths of a pixel.
        """
        generator = _generator(16)

        def draw(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, shape, generator=generator)

        parts = draw(1, 4, self.truths)
        corners = draw(3, 12, int(parts.sum()))
        extent = torch.tensor([self.pyramid.width, self.pyramid.height])
        vertices = []
        for number, count in enumerate(corners.tolist()):
            center = torch.rand(2, generator=generator) * (extent + 10) - 5
            scale = (0.7, 3.0, 15.0, 60.0)[int(draw(0, 4))]
            drawn = center + scale * torch.randn((count, 2), generator=generator)
            vertices.append((drawn * 10).round() / 10 if number % 2 else drawn)
        begin = torch.zeros(1, dtype=torch.int64)
        together = torch.cat(vertices) if vertices else torch.zeros((0, 2))
        return together, torch.cat([begin, corners.cumsum(0)]), torch.cat([begin, parts.cumsum(0)])

    def normal(self, *shape: int, seed: int = 0) -> Tensor:
        """Normally distributed, float32."""
        return torch.randn(shape, generator=_generator(seed))

    def uniform(self, *shape: int, seed: int = 0) -> Tensor:
        """From 0 to 1, float32."""
        return torch.rand(shape, generator=_generator(seed))

    def choices(self, most: int, number: int, seed: int = 0) -> Tensor:
        """Indices below `most` [number], int64."""
        return torch.randint(0, most, (number,), generator=_generator(seed))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes(size: Size) -> list[Scene]:
    """The named shapes for a place: tiny for the interpreter, small for the virtual GPU, full for a GPU."""
    tiny = size == "tiny"
    few = Scene("", Pyramid(2, 64, 96, 32), shrink=4, rois=3)
    odd = replace(few, name="odd", pyramid=Pyramid(3, 75, 101, 19), rois=6, sampling_ratio=-1, aligned=True, classes=3)
    if tiny:
        few = replace(few, pyramid=Pyramid(2, 40, 56, 8), rois=1, pooled=(3, 2), mask_side=6, classes=3)
        few = replace(few, candidates=70, max_keep=30, truths=3, losses=4)
        odd = replace(few, name="odd", pyramid=Pyramid(3, 43, 67, 11), sampling_ratio=-1, aligned=True)
    odd = replace(odd, candidates=270)  # more than NMS does at once
    small = replace(few, rois=2 * few.rois)
    common = [
        odd,
        replace(few, name="one pixel", pyramid=Pyramid(2, 32, 32, 5), level=-1, pooled=(2, 2), mask_side=2, classes=1),
        replace(few, name="one box", pyramid=Pyramid(1, 40, 48, 16), rois=1, candidates=1, max_keep=1, truths=1),
        replace(small, name="empty", rois=0, candidates=0, truths=0),
        replace(few, name="degenerate", boxes="degenerate", aligned=True),
        replace(few, name="not finite", boxes="not finite", sampling_ratio=-1),
        replace(few, name="far outside", boxes="far outside"),
        replace(few, name="boundaries", boxes="boundaries", sampling_ratio=-1),
    ]
    if size == "tiny":
        return [replace(small, name="pyramid"), *common]
    if size == "small":
        middling = Scene("middling", Pyramid(2, 200, 336, 64), rois=12, candidates=300, max_keep=100, classes=9)
        branch = replace(small, name="mask branch", pooled=(14, 14), mask_side=28, sampling_ratio=-1)
        # The maps of a whole image, with fewer channels and boxes than a detector has.
        real = Scene(
            "800 x 1344", Pyramid(1, 800, 1344, 32), rois=8, candidates=600, max_keep=200, mask_side=28, truths=2
        )
        return [replace(small, name="pyramid"), branch, middling, real, *common]
    full = Scene("pyramid", Pyramid(), rois=512, candidates=2000, max_keep=1000, classes=80, mask_side=28, truths=15)
    full = replace(full, full=True)
    branch = replace(full, name="mask branch", rois=128, pooled=(14, 14))
    adaptive = replace(full, name="adaptive", rois=128, sampling_ratio=-1, aligned=True)
    return [full, branch, adaptive, *common]


def largest_gap(values: Tensor, around: float = 0.5, within: float = 0.1) -> float:
    """A threshold near `around` that no value is near: the middle of the widest gap, so that rounding decides nothing.

    Args:
        values: in float64.
    """
    near = values[(values - around).abs() < within].unique()
    if len(near) < 2:
        return around
    gaps = near.diff()
    at = int(gaps.argmax())
    middle = float(near[at] + gaps[at] / 2)
    return middle if math.isfinite(middle) else around

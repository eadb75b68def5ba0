"""Anchors against torchvision's, and one level by hand."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from mrcnn.anchors import level_anchors, pyramid_anchors

SIZES = (32, 64, 128, 256, 512)
RATIOS = (0.5, 1.0, 2.0)


@pytest.mark.parametrize("input_size", [(64, 96), (224, 160), (800, 1344)])
def test_pyramid_is_torchvisions(input_size: tuple[int, int]) -> None:
    features = [torch.zeros(2, 1, -(-input_size[0] // s), -(-input_size[1] // s)) for s in (4, 8, 16, 32, 64)]
    generator = AnchorGenerator(tuple((size,) for size in SIZES), (RATIOS,) * 5)
    images = ImageList(torch.zeros(2, 3, *input_size), [input_size, (10, 10)])
    theirs, same = generator(images, features)
    ours = pyramid_anchors(features, input_size, SIZES, RATIOS)
    assert [len(level) for level in ours] == [3 * f.shape[2] * f.shape[3] for f in features]
    assert torch.equal(torch.cat(ours), theirs)
    assert torch.equal(theirs, same)


def test_one_level_by_hand() -> None:
    anchors = level_anchors((2, 2), (8, 16), 32, (1.0, 0.25), torch.device("cpu"))
    at_origin = [[-16, -16, 16, 16], [-32, -8, 32, 8]]  # ratio is height over width: 0.25 is 16 high and 64 wide
    expected = [
        [x1 + dx, y1 + dy, x2 + dx, y2 + dy]
        for dx, dy in ((0, 0), (16, 0), (0, 8), (16, 8))
        for x1, y1, x2, y2 in at_origin
    ]
    assert anchors.tolist() == expected

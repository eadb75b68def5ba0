"""Results in pixels of the original images against torchvision's, and the formats of masks against each other."""

import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from mrcnn.postprocess import to_images
from mrcnn.preprocess import Batch
from mrcnn.roi_heads import Detections

ORIGINAL, RESIZED = [(60, 80), (171, 111)], [(100, 133), (154, 100)]
BATCH = Batch(torch.zeros(2, 3, 160, 160), torch.tensor(RESIZED), ORIGINAL, RESIZED)
COUNTS = [9, 0]


def detections() -> tuple[Detections, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(2, 12, 2, generator=generator) * 70 - 5
    boxes = torch.cat([low, low + 3 + torch.rand(2, 12, 2, generator=generator) * 60], dim=2)
    labels = torch.randint(1, 5, (2, 12), generator=generator)
    scores = torch.rand(2, 12, generator=generator).sort(dim=1, descending=True).values
    crops = torch.rand(2, 12, 28, 28, generator=generator)
    return Detections(boxes, labels, scores, torch.tensor(COUNTS)), crops


def test_results_are_torchvisions() -> None:
    found, crops = detections()
    transform = GeneralizedRCNNTransform(100, 160, [0.0] * 3, [1.0] * 3).eval()
    raw = [
        {"boxes": found.boxes[i, :n], "labels": found.labels[i, :n], "masks": crops[i, :n, None]}
        for i, n in enumerate(COUNTS)
    ]
    expected = transform.postprocess(raw, RESIZED, ORIGINAL)
    result = to_images(found, crops, BATCH, "prob")
    for image, number in enumerate(COUNTS):
        assert torch.equal(result[image]["boxes"], expected[image]["boxes"])
        assert torch.equal(result[image]["labels"], expected[image]["labels"])
        assert torch.equal(result[image]["scores"], found.scores[image, :number])
        assert result[image]["masks"].shape == (number, 1, *ORIGINAL[image])
        torch.testing.assert_close(result[image]["masks"], expected[image]["masks"], rtol=0, atol=1e-5)


def test_formats_of_masks_agree() -> None:
    found, crops = detections()
    formats = {name: to_images(found, crops, BATCH, name) for name in ("prob", "bool", "rle", "crop")}
    for image, number in enumerate(COUNTS):
        probability, whole, rle, crop = (formats[name][image]["masks"] for name in ("prob", "bool", "rle", "crop"))
        assert whole.dtype == torch.bool
        assert torch.equal(whole, probability[:, 0] > 0.5)
        assert [each["size"] for each in rle] == [list(ORIGINAL[image])] * number
        assert all(isinstance(each["counts"], str) for each in rle)
        for each, mask in zip(rle, whole, strict=True):
            assert torch.equal(torch.from_numpy(coco_mask.decode(each)).bool(), mask)
        assert torch.equal(crop, crops[image, :number])
    assert formats["bool"][0]["masks"].any(dim=(1, 2)).all()


def test_by_pixel_centres_a_mask_as_large_as_its_box_is_pasted_as_it_is() -> None:
    size = [(40, 50)]
    batch = Batch(torch.zeros(1, 3, 64, 64), torch.tensor(size), size, size)
    found = Detections(torch.tensor([[[7.0, 5.0, 35.0, 33.0]]]), torch.ones(1, 1), torch.ones(1, 1), torch.tensor([1]))
    crop = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    (result,) = to_images(found, crop, batch, "prob", "centers")
    torch.testing.assert_close(result["masks"][0, 0, 5:33, 7:35], crop[0, 0], rtol=0, atol=1e-5)
    whole, rle = (to_images(found, crop, batch, name, "centers")[0]["masks"][0] for name in ("bool", "rle"))
    assert torch.equal(whole, result["masks"][0, 0] >= 0.5)
    assert torch.equal(torch.from_numpy(coco_mask.decode(rle)).bool(), whole)


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(ValueError, match="mask_format is 'png'; it must be one of"):
        to_images(*detections(), BATCH, "png")

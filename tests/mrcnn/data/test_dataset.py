"""Real data sets read as pycocotools reads them; caching, subsets and ground truth."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn.data import InstanceDataset, open_dataset
from mrcnn.data.images import ImageError
from mrcnn.data.records import Contents

Document = dict[str, Any]
Write = Callable[[Document], Path]
REAL = ["tiny-coco/annotations/instances_train2017.json", "dsb-mini/val.json"]


def indexed(document: Document) -> COCO:
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    return coco


@pytest.mark.parametrize("name", REAL)
def test_equal_to_pycocotools(test_data: Callable[[str], Path], name: str) -> None:
    path = test_data(name)
    dataset = open_dataset(path)
    coco = indexed(json.loads(path.read_text()))
    assert dataset.problems == []
    assert dataset.category_ids == [0, *sorted(coco.getCatIds())]
    assert sorted(dataset.image_ids) == sorted(coco.getImgIds())
    for index in range(0, len(dataset), 3):
        sample = dataset[index]
        image = coco.imgs[sample.image_id]
        assert sample.image.shape == (3, image["height"], image["width"])
        assert sample.file_name == image["file_name"]
        expected = coco.loadAnns(coco.getAnnIds(imgIds=[sample.image_id], iscrowd=False))
        assert len(sample.target["boxes"]) == len(expected)
        for box, label, mask, annotation in zip(
            *(sample.target[key] for key in ("boxes", "labels", "masks")), expected, strict=True
        ):
            x, y, width, height = annotation["bbox"]
            limits = np.array([image["width"], image["height"]] * 2)
            np.testing.assert_allclose(box, np.clip([x, y, x + width, y + height], 0, limits), rtol=0, atol=1e-4)
            assert dataset.category_ids[label] == annotation["category_id"]
            assert coco.cats[annotation["category_id"]]["name"] == dataset.class_names[label]
            np.testing.assert_array_equal(mask, coco.annToMask(annotation))


@pytest.mark.parametrize("name", REAL)
def test_ground_truth_evaluates_as_the_file_does(test_data: Callable[[str], Path], name: str) -> None:
    """The same detections get the same 12 figures from the ground truth as from the original file."""
    path = test_data(name)
    original = json.loads(path.read_text())
    generator = np.random.default_rng(0)
    results = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": (np.array(a["bbox"]) + generator.normal(0, 1, 4)).clip(0.5).tolist(),
            "score": float(generator.random()),
        }
        for a in original["annotations"]
        if generator.random() < 0.8
    ]
    figures = []
    for document in (original, open_dataset(path).coco_ground_truth()):
        document.setdefault("info", {})
        truth = indexed(document)
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        figures.append(evaluation.stats)
    np.testing.assert_array_equal(figures[0], figures[1])
    assert 0.1 < figures[0][0] < 1


def test_annotation_id_0_is_replaced(document: Document, write: Write) -> None:
    """COCOeval counts a match with annotation 0 as none."""
    document["annotations"].append({**document["annotations"][0], "id": 0})
    truth = open_dataset(write(document)).coco_ground_truth()
    assert sorted(a["id"] for a in truth["annotations"]) == [11, 12]


def test_target_dtypes(document: Document, write: Write) -> None:
    sample = open_dataset(write(document))[0]
    assert [sample.target[key].dtype for key in ("boxes", "labels", "masks")] == [
        torch.float32,
        torch.int64,
        torch.uint8,
    ]
    assert sample.image.dtype == torch.float32
    assert sample.image.is_contiguous()
    assert sample.target["masks"].is_contiguous()


def three_images(document: Document, write: Write) -> Path:
    document["images"] = [{"id": image_id, "file_name": "a.png", "width": 10, "height": 8} for image_id in (5, 9, 2)]
    return write(document)


def test_subset(document: Document, write: Write) -> None:
    dataset = open_dataset(three_images(document, write))
    assert dataset.image_ids == [5, 9, 2]
    assert dataset.subset([2, 0]).image_ids == [2, 5]
    part = dataset.subset(image_ids=[9, 5])
    assert part.image_ids == [9, 5]
    assert [len(part[i].target["boxes"]) for i in range(2)] == [0, 1]
    assert [image["id"] for image in part.coco_ground_truth()["images"]] == [9, 5]
    assert len(dataset.subset([])) == 0
    with pytest.raises(ValueError, match=r"image_ids must be ids of images of data.json, but \[1\] are not"):
        dataset.subset(image_ids=[1])
    with pytest.raises(ValueError, match="either indices or image_ids"):
        dataset.subset()
    with pytest.raises(ValueError, match="either indices or image_ids"):
        dataset.subset([0], image_ids=[5])


def test_cache_is_bounded(document: Document, write: Write) -> None:
    """One sample of 8 × 10 pixels takes 960 bytes of image, and boxes, label and mask of one object 104."""
    path = three_images(document, write)
    dataset = open_dataset(path, cache_bytes=960 + 104)
    assert dataset[0] is dataset[0]
    assert dataset[1] is not dataset[1]
    uncached = open_dataset(path, cache_bytes=0)
    assert uncached[0] is not uncached[0]
    for key, tensor in dataset[0].target.items():
        assert torch.equal(tensor, uncached[0].target[key])


def test_image_lost_after_opening(document: Document, write: Write) -> None:
    path = write(document)
    dataset = open_dataset(path)
    (path.parent / "a.png").unlink()
    with pytest.raises(ImageError, match="missing"):
        dataset[0]


def test_negative_index_and_end(document: Document, write: Write) -> None:
    dataset = open_dataset(three_images(document, write))
    assert dataset[-1].image_id == 2
    with pytest.raises(IndexError):
        dataset[3]
    assert [sample.image_id for sample in dataset] == [5, 9, 2]


def test_pixels_in_memory() -> None:
    from mrcnn.data.records import ImageRecord

    pixels = np.full((4, 6, 3), 51, dtype=np.uint8)
    record = ImageRecord(1, "memory", pixels, 4, 6, ())
    sample = InstanceDataset(Contents([record], ["background"], [0], []), name="memory")[0]
    assert torch.equal(sample.image, torch.full((3, 4, 6), 0.2))

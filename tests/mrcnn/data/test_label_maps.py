"""Folders of images with label maps, in each layout that is promised."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mrcnn.data import DatasetError, open_dataset

LABELS = np.array([[0, 1, 1, 0], [300, 1, 0, 7], [300, 0, 7, 7]], dtype=np.uint16)
PICTURE = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("a.png", "a_mask.png"),
        ("a.bmp", "a_masks.png"),
        ("a.png", "a_label.tif"),
        ("a.png", "a_labels.tiff"),
        ("a.png", "masks/a.png"),
        ("a.png", "labels/a.png"),
        ("images/a.png", "masks/a.png"),
        ("images/a.png", "labels/a_labels.png"),
    ],
)
def test_layouts(tmp_path: Path, image: str, labels: str) -> None:
    save(tmp_path / image, PICTURE)
    save(tmp_path / labels, LABELS)
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 1
    sample = dataset[0]
    assert sample.image.shape == (3, 3, 4)
    assert sample.target["labels"].tolist() == [1, 1, 1]
    expected = torch.from_numpy(np.stack([value == LABELS for value in (1, 7, 300)]).astype(np.uint8))
    assert torch.equal(sample.target["masks"], expected)
    assert sample.target["boxes"].tolist() == [[1, 0, 3, 2], [2, 1, 4, 3], [0, 1, 1, 3]]
    truth = dataset.coco_ground_truth()
    assert [(a["id"], a["area"]) for a in truth["annotations"]] == [(1, 3), (2, 3), (3, 2)]
    assert truth["categories"] == [{"id": 1, "name": "object"}]


def test_images_apart(tmp_path: Path) -> None:
    save(tmp_path / "pictures" / "a.png", PICTURE)
    save(tmp_path / "truth" / "a.png", LABELS)
    assert len(open_dataset(tmp_path / "truth", tmp_path / "pictures")[0].target["boxes"]) == 3


def test_palette_indices_are_labels(tmp_path: Path) -> None:
    save(tmp_path / "a.png", PICTURE)
    image = Image.new("P", (4, 3))
    image.putdata([0, 1, 1, 0, 2, 1, 0, 3, 2, 0, 3, 3])
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "a_mask.png")
    assert open_dataset(tmp_path)[0].target["masks"].sum(dim=(1, 2)).tolist() == [3, 2, 3]


def test_empty_map_is_an_image_without_objects(tmp_path: Path) -> None:
    for name, labels in (("a", LABELS), ("b", np.zeros_like(LABELS))):
        save(tmp_path / f"{name}.png", PICTURE)
        save(tmp_path / f"{name}_mask.png", labels)
    dataset = open_dataset(tmp_path)
    assert [len(dataset[i].target["boxes"]) for i in range(2)] == [3, 0]
    assert dataset.image_ids == [1, 2]


@pytest.mark.parametrize(
    ("labels", "kind", "at_fault"),
    [
        (None, "labels-missing", "b.png"),
        (np.dstack([LABELS.astype(np.uint8)] * 3), "labels-invalid", "b_mask.png"),
        (np.where(LABELS > 0, 255, 0).astype(np.uint8), "labels-invalid", "b_mask.png"),
        (LABELS > 0, "labels-invalid", "b_mask.png"),
        (LABELS[:2], "image-size", "b.png"),
        (b"not a picture", "image-unreadable", "b_mask.png"),
    ],
)
def test_problems(tmp_path: Path, labels: np.ndarray | bytes | None, kind: str, at_fault: str) -> None:
    save(tmp_path / "a.png", PICTURE)
    save(tmp_path / "a_mask.png", LABELS)
    save(tmp_path / "b.png", PICTURE)
    if isinstance(labels, bytes):
        (tmp_path / "b_mask.png").write_bytes(labels)
    elif labels is not None:
        save(tmp_path / "b_mask.png", labels)
    with pytest.raises(DatasetError) as caught:
        open_dataset(tmp_path)
    (problem,) = caught.value.problems
    assert (problem.kind, problem.file) == (kind, str(tmp_path / at_fault))
    assert len(open_dataset(tmp_path, skip_bad=True)) == 1


def test_label_maps_without_images(tmp_path: Path) -> None:
    save(tmp_path / "a_mask.png", LABELS)
    with pytest.raises(DatasetError, match="neither a COCO JSON file nor an image with a label map"):
        open_dataset(tmp_path)

"""COCO documents are read as they are meant, and every bad item is named with its file and ids."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mrcnn.data import DatasetError, open_dataset

Document = dict[str, Any]
Write = Callable[[Document], Path]


def put(document: Document, **changes: Any) -> Document:
    """The document with a second annotation: the first one changed (None removes a key)."""
    document = deepcopy(document)
    entry = {**document["annotations"][0], "id": 12, **changes}
    document["annotations"].append({key: value for key, value in entry.items() if value is not None})
    return document


def test_good(document: Document, write: Write) -> None:
    dataset = open_dataset(write(document))
    assert dataset.class_names == ["background", "cat", "dog"]
    assert dataset.category_ids == [0, 3, 7]
    assert dataset.image_ids == [5]
    assert dataset.image_sizes == [(8, 10)]
    sample = dataset[0]
    assert (sample.image_id, sample.file_name, sample.image.shape) == (5, "a.png", (3, 8, 10))
    assert torch.equal(sample.target["boxes"], torch.tensor([[2.0, 1.0, 6.0, 5.0]]))
    assert torch.equal(sample.target["labels"], torch.tensor([2]))
    expected = torch.zeros(1, 8, 10, dtype=torch.uint8)
    expected[0, 1:5, 2:6] = 1
    assert torch.equal(sample.target["masks"], expected)


def test_boxes_are_clipped_but_kept_in_the_ground_truth(document: Document, write: Write) -> None:
    document["annotations"][0] |= {"bbox": [-1.5, 1, 20, 4], "segmentation": [[0, 1, 10, 1, 10, 5, 0, 5]]}
    dataset = open_dataset(write(document))
    assert dataset[0].target["boxes"].tolist() == [[0, 1, 10, 5]]
    assert dataset.coco_ground_truth()["annotations"][0]["bbox"] == [-1.5, 1, 20, 4]


def test_annotated_area_is_kept(document: Document, write: Write) -> None:
    """COCO's areas are those of polygons, and decide between small, medium and large."""
    document["annotations"][0]["area"] = 15.25
    assert open_dataset(write(document)).coco_ground_truth()["annotations"][0]["area"] == 15.25


def test_crowd_is_for_evaluation_only(document: Document, write: Write) -> None:
    crowd = put(document, iscrowd=1, segmentation={"size": [8, 10], "counts": [16, 40, 24]})
    dataset = open_dataset(write(crowd))
    assert len(dataset[0].target["boxes"]) == 1
    assert [a["iscrowd"] for a in dataset.coco_ground_truth()["annotations"]] == [0, 1]


@pytest.mark.parametrize(("value", "is_crowd"), [(0, 0), (1, 1), (True, 1), ("0", 0), ("1", 1), (None, 0)])
def test_iscrowd_as_tools_write_it(document: Document, write: Write, value: object, is_crowd: int) -> None:
    truth = open_dataset(write(put(document, iscrowd=value))).coco_ground_truth()
    assert truth["annotations"][1]["iscrowd"] == is_crowd


def test_image_without_objects_is_kept(document: Document, write: Write) -> None:
    document["images"].append({"id": 6, "file_name": "a.png", "width": 10, "height": 8})
    target = open_dataset(write(document))[1].target
    assert {key: tuple(value.shape) for key, value in target.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "masks": (0, 8, 10),
    }


def test_what_may_be_left_out(document: Document, write: Write) -> None:
    del document["images"][0]["width"], document["images"][0]["height"]
    for key in ("area", "iscrowd", "bbox"):
        del document["annotations"][0][key]
    annotation = open_dataset(write(document)).coco_ground_truth()["annotations"][0]
    assert annotation["area"] == 16
    assert annotation["bbox"] == [2, 1, 4, 4]
    assert annotation["iscrowd"] == 0


def test_byte_order_mark_and_backslash(document: Document, write: Write) -> None:
    path = write(document)
    (path.parent / "sub").mkdir()
    (path.parent / "a.png").rename(path.parent / "sub" / "a.png")
    document["images"][0]["file_name"] = "sub\\a.png"
    path.write_text("\ufeff" + json.dumps(document), encoding="utf-8")
    assert open_dataset(path).records[0].file_name == "sub/a.png"


def test_exif_orientation_follows_the_annotated_size(document: Document, write: Write) -> None:
    path = write(document)
    stored = np.zeros((8, 10, 3), dtype=np.uint8)
    stored[1:5, 2:6] = 255
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(stored).save(path.parent / "a.png", exif=exif)
    sample = open_dataset(path)[0]  # annotated at the size as stored
    assert torch.equal(sample.image[0] == 1, sample.target["masks"][0] == 1)

    document["images"][0] |= {"width": 8, "height": 10}  # upright: stored row r is column 7 - r
    document["annotations"][0] |= {
        "bbox": [3, 2, 4, 4],
        "segmentation": [[3, 2, 7, 2, 7, 6, 3, 6]],
    }
    sample = open_dataset(write_json(path, document))[0]
    assert sample.image.shape == (3, 10, 8)
    assert torch.equal(sample.image[0] == 1, sample.target["masks"][0] == 1)


def write_json(path: Path, document: Document) -> Path:
    path.write_text(json.dumps(document))
    return path


BAD_ANNOTATIONS = [
    ("annotation-image", {"image_id": 99}, 99, "no image has this id"),
    ("annotation-entry", {"image_id": "5"}, None, "no integer \"image_id\" but '5'"),
    ("annotation-category", {"category_id": 5}, 5, "category id 5 is not among the categories"),
    ("annotation-duplicate", {"id": 11}, 5, "given twice"),
    ("box-empty", {"bbox": [2, 1, 0, 4]}, 5, "has no area"),
    ("box-empty", {"bbox": [2, 1, 4, -4]}, 5, "has no area"),
    ("box-empty", {"bbox": [12, 1, 4, 4]}, 5, "outside the image of 10 × 8"),
    ("box-empty", {"bbox": [2, 8, 4, 4]}, 5, "outside the image of 10 × 8"),
    ("box-empty", {"bbox": [-4, 1, 4, 4]}, 5, "outside the image of 10 × 8"),
    ("box-invalid", {"bbox": [2, float("nan"), 4, 4]}, 5, "not four finite numbers"),
    ("box-invalid", {"bbox": [2, 1, float("inf"), 4]}, 5, "not four finite numbers"),
    ("box-invalid", {"bbox": [2, 1, 4]}, 5, "not four finite numbers"),
    ("box-mask", {"bbox": [7, 6, 2, 2]}, 5, "do not overlap"),
    ("polygon-invalid", {"segmentation": [[2, 1, 6, 1, 6, 5, 2]]}, 5, "odd number of coordinates"),
    ("polygon-invalid", {"segmentation": [[2, 1, 6, 5]]}, 5, "fewer than the 6"),
    ("rle-invalid", {"segmentation": {"size": [10, 8], "counts": [80]}}, 5, "the image is [8, 10]"),
    ("mask-missing", {"segmentation": None}, 5, "no segmentation"),
    ("mask-empty", {"segmentation": [[2, 1, 2, 1, 2, 1]]}, 5, "covers no pixel"),
    ("mask-empty", {"segmentation": {"size": [8, 10], "counts": [80]}}, 5, "covers no pixel"),
]


@pytest.mark.parametrize(("kind", "changes", "image_id", "words"), BAD_ANNOTATIONS)
def test_bad_annotation(
    document: Document, write: Write, kind: str, changes: Document, image_id: int | None, words: str
) -> None:
    path = write(put(document, **changes))
    with pytest.raises(DatasetError) as caught:
        open_dataset(path)
    (problem,) = caught.value.problems
    annotation_id = changes.get("id", 12)
    assert (problem.kind, problem.file, problem.image_id, problem.annotation_id) == (
        kind,
        str(path),
        image_id,
        annotation_id,
    )
    message = str(caught.value)
    assert words in message
    assert f"annotation {annotation_id}: " in message
    assert problem.remedy in message
    assert "--skip-bad" in message

    listed = path.parent / "lists" / "skipped.jsonl"
    dataset = open_dataset(path, skip_bad=True, skipped_to=listed)
    assert len(dataset[0].target["boxes"]) == 1
    assert dataset.problems == [problem]
    (line,) = listed.read_text().splitlines()
    assert json.loads(line) == {
        "kind": kind,
        "file": str(path),
        "message": problem.message,
        "remedy": problem.remedy,
        "image_id": image_id,
        "annotation_id": annotation_id,
    }


def test_annotation_without_id(document: Document, write: Write) -> None:
    with pytest.raises(DatasetError, match=r"image 5: annotation number 1 has no integer \"id\""):
        open_dataset(write(put(document, id=None)))


def test_annotation_that_is_no_object(document: Document, write: Write) -> None:
    document["annotations"].append(3)
    with pytest.raises(DatasetError, match="annotation number 1 has no integer"):
        open_dataset(write(document))


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("image-missing", Path.unlink),
        ("image-unreadable", damage),
        ("image-size", lambda path: Image.new("RGB", (10, 9)).save(path)),
    ],
)
def test_bad_image(document: Document, write: Write, kind: str, spoil: Callable[[Path], None]) -> None:
    """A bad image takes its annotations with it."""
    path = write(document)
    bad = path.parent / "b.png"
    bad.write_bytes((path.parent / "a.png").read_bytes())
    spoil(bad)
    document["images"].append({"id": 6, "file_name": "b.png", "width": 10, "height": 8})
    path = write_json(path, put(document, image_id=6))
    with pytest.raises(DatasetError) as caught:
        open_dataset(path)
    (problem,) = caught.value.problems
    assert (problem.kind, problem.file, problem.image_id) == (kind, str(bad), 6)
    assert open_dataset(path, skip_bad=True).image_ids == [5]


@pytest.mark.parametrize(
    ("entry", "kind", "image_id"),
    [
        ({"id": 5, "file_name": "b.png"}, "image-duplicate", 5),
        ({"id": 6}, "image-entry", 6),
        ({"file_name": "a.png"}, "image-entry", None),
        ({"id": True, "file_name": "a.png"}, "image-entry", None),
        ("a.png", "image-entry", None),
    ],
)
def test_bad_image_entry(document: Document, write: Write, entry: object, kind: str, image_id: int | None) -> None:
    document["images"].append(entry)
    path = write(document)
    with pytest.raises(DatasetError) as caught:
        open_dataset(path)
    (problem,) = caught.value.problems
    assert (problem.kind, problem.image_id) == (kind, image_id)
    assert open_dataset(path, skip_bad=True).image_ids == [5]


@pytest.mark.parametrize(
    ("entry", "kind"), [({"id": 3, "name": "x"}, "category-duplicate"), ({"name": "x"}, "category-entry")]
)
def test_bad_category(document: Document, write: Write, entry: Document, kind: str) -> None:
    document["categories"].append(entry)
    path = write(document)
    with pytest.raises(DatasetError) as caught:
        open_dataset(path)
    assert [problem.kind for problem in caught.value.problems] == [kind]
    assert open_dataset(path, skip_bad=True).class_names == ["background", "cat", "dog"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not JSON"),
        ('{"images": [', "not JSON"),
        ("\x00\x01", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "detection results"),
        ("3", "not a COCO data set"),
        ('{"images": [], "categories": []}', "no list 'annotations'"),
        ('{"images": {}, "annotations": [], "categories": []}', "no list 'images'"),
        ('{"images": [], "annotations": [], "categories": []}', "no object is annotated"),
    ],
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_not_coco(tmp_path: Path, content: str, words: str, skip_bad: bool) -> None:
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=words) as caught:
        open_dataset(path, skip_bad=skip_bad)
    assert str(path) in str(caught.value)
    assert "skip" not in str(caught.value)


def test_latin_1(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_bytes('{"images": "é"}'.encode("latin-1"))
    with pytest.raises(DatasetError, match="not JSON"):
        open_dataset(path)


def test_no_annotation(document: Document, write: Write) -> None:
    document["annotations"][0]["iscrowd"] = 1
    with pytest.raises(DatasetError, match="no object is annotated in its 1 usable images"):
        open_dataset(write(document))


def test_nothing_left_after_skipping(document: Document, write: Write) -> None:
    document["annotations"][0]["bbox"] = [0, 0, 0, 0]
    path = write(document)
    listed = path.parent / "skipped.jsonl"
    with pytest.raises(DatasetError, match="has no area") as caught:
        open_dataset(path, skip_bad=True, skipped_to=listed)
    assert [problem.kind for problem in caught.value.problems] == ["box-empty", "no-annotation"]
    assert len(listed.read_text().splitlines()) == 1


def test_many_problems_are_bounded_and_counted(document: Document, write: Write) -> None:
    first = document["annotations"][0]
    document["annotations"] += [{**first, "id": 100 + n, "category_id": 1} for n in range(35)]
    with pytest.raises(DatasetError, match="35 problems") as caught:
        open_dataset(write(document))
    assert len(caught.value.problems) == 35
    lines = str(caught.value).splitlines()
    assert lines[20].startswith("  20. ")
    assert lines[21] == "  ... and 15 more."

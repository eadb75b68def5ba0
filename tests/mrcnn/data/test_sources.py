"""A path is all one has to give: images and annotations are found where people put them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrcnn.data import DatasetError, open_dataset

Document = dict[str, Any]
Write = Callable[[Document], Path]


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("train.json", "."),
        ("train.json", "train"),
        ("train.json", "images"),
        ("train.json", "images/train"),
        ("_annotations.coco.json", "."),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/person_keypoints_train2017.json", "train2017"),
        ("annotations/train.json", "images"),
        ("annotations/train.json", "train"),
    ],
)
def test_image_folder_is_found(document: Document, write: Write, annotations: str, images: str) -> None:
    written = write(document)
    root = written.parent / "root"
    (root / annotations).parent.mkdir(parents=True)
    (root / images).mkdir(parents=True, exist_ok=True)
    (written.parent / "a.png").rename(root / images / "a.png")
    path = written.rename(root / annotations)
    for source in (path, root):
        assert open_dataset(source)[0].image.shape == (3, 8, 10)


def test_relative_path(document: Document, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(document)
    monkeypatch.chdir(path.parent)
    assert len(open_dataset(Path("data.json"))[0].target["boxes"]) == 1


def test_folder_given(document: Document, write: Write) -> None:
    path = write(document)
    elsewhere = path.parent / "some" / "where"
    elsewhere.mkdir(parents=True)
    (path.parent / "a.png").rename(elsewhere / "a.png")
    with pytest.raises(DatasetError, match=r"none of its images, such as a\.png.*--images DIR"):
        open_dataset(path)
    assert open_dataset(path, elsewhere)[0].image.shape == (3, 8, 10)


def test_folder_with_most_of_the_images_wins(document: Document, write: Write) -> None:
    path = write(document)
    picture = (path.parent / "a.png").read_bytes()
    document["images"].append({"id": 6, "file_name": "b.png", "width": 10, "height": 8})
    path = write(document)
    (path.parent / "images").mkdir()
    for name in ("a.png", "b.png"):
        (path.parent / "images" / name).write_bytes(picture)
    assert len(open_dataset(path)) == 2


@pytest.mark.parametrize("images", [None, "a.png", "none"])
def test_path_missing(document: Document, write: Write, images: str | None) -> None:
    path = write(document)
    source = path if images else path.parent / "none.json"
    with pytest.raises(DatasetError, match=r"no such file or folder|not a folder"):
        open_dataset(source, path.parent / images if images else None)


def test_several_json_files(document: Document, write: Write) -> None:
    path = write(document)
    (path.parent / "other.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"several JSON files: data\.json, other\.json"):
        open_dataset(path.parent)
    path.rename(path.parent / "instances_data.json")
    assert len(open_dataset(path.parent)) == 1


def test_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="neither a COCO JSON file nor an image with a label map"):
        open_dataset(tmp_path)

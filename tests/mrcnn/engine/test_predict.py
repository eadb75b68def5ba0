"""Prediction on files: what is found, what is written, and files that cannot be read."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_tools

from mrcnn.engine.coco_eval import coco_figures
from mrcnn.engine.predict import PredictionError, check_pictures, find_pictures, predict

NAMES, IDS = ("background", "round", "square"), (0, 4, 9)


@pytest.fixture
def folder(shapes):
    """The folder of the pictures of `shapes`: 0001.png to 0003.png."""
    return shapes.records[0].pixels.parent


def test_results_are_coco_results(shapes, clairvoyant, folder, tmp_path):
    predictions = predict(clairvoyant(shapes), [folder], tmp_path, NAMES, IDS)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [len(p.results) for p in predictions] == [2, 2, 2]
    assert {result["image_id"] for result in results} == {1, 2, 3}
    truth = shapes.coco_ground_truth()
    for item in truth["images"]:
        item["id"] //= 10  # names count from 1, the data set's ids in tens
    for item in truth["annotations"]:
        item["image_id"] //= 10
    for kind in ("bbox", "segm"):
        assert coco_figures(truth, results, kind)["AP"] == pytest.approx(1)
    images = json.loads((tmp_path / "images.json").read_text())
    assert images["images"][1] == {
        "id": 2,
        "file_name": str(folder / "0002.png"),
        "height": 48,
        "width": 64,
    }
    assert images["categories"] == [{"id": 4, "name": "round"}, {"id": 9, "name": "square"}]


def test_pictures_show_the_masks(shapes, clairvoyant, folder, tmp_path):
    predict(clairvoyant(shapes), [folder / "0001.png"], tmp_path, NAMES, IDS)
    overlay = Image.open(tmp_path / "pictures" / "0001.png").convert("RGB").resize((64, 48))
    change = np.abs(np.asarray(overlay, dtype=int) - np.asarray(Image.open(folder / "0001.png"), dtype=int))
    (mask,) = (a.segmentation for a in shapes.records[0].annotations if a.label == 2)
    inside = rle_tools.decode(mask).astype(bool)
    assert change.sum(axis=2)[inside].mean() > 60


def test_scores_below_the_threshold_are_left_out(shapes, clairvoyant, folder, tmp_path):
    predictions = predict(clairvoyant(shapes), [folder], tmp_path, NAMES, IDS, score_threshold=0.6)
    assert [len(p.results) for p in predictions] == [1, 1, 1]
    assert all(r["score"] >= 0.6 for r in json.loads((tmp_path / "results.json").read_text()))


def test_nothing_found_is_a_result(shapes, clairvoyant, folder, tmp_path):
    predict(clairvoyant(shapes), [folder], tmp_path, NAMES, IDS, score_threshold=0.99)
    assert json.loads((tmp_path / "results.json").read_text()) == []
    assert len(list((tmp_path / "pictures").iterdir())) == 3


def test_ids_come_from_names_only_where_those_are_distinct_numbers(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "0002.png").write_bytes((folder / "0002.png").read_bytes())
    (other / "cell.png").write_bytes((folder / "0002.png").read_bytes())
    pictures, _ = check_pictures([folder / "0003.png", folder / "0001.png"])
    assert [p.image_id for p in pictures] == [3, 1]
    pictures, _ = check_pictures([folder / "0002.png", other / "0002.png"])
    assert [p.image_id for p in pictures] == [1, 2]
    assert len({p.overlay for p in pictures}) == 2
    pictures, _ = check_pictures([folder / "0002.png", other / "cell.png"])
    assert [p.image_id for p in pictures] == [1, 2]


def test_bad_pictures_are_all_named_before_any_work(shapes, clairvoyant, folder, tmp_path):
    model = clairvoyant(shapes)
    whole = (folder / "0002.png").read_bytes()
    (folder / "0002.png").write_bytes(whole[: len(whole) // 2])
    (folder / "0000.png").write_text("no picture")
    with pytest.raises(PredictionError) as error:
        predict(model, [folder], tmp_path / "out", NAMES, IDS)
    for words in ("2 of 4 pictures", "0000.png", "0002.png", "--skip-bad"):
        assert words in str(error.value)
    assert not (tmp_path / "out" / "results.json").exists()


def test_skipping_goes_on_and_lists_them(shapes, clairvoyant, folder, tmp_path):
    model = clairvoyant(shapes)
    (folder / "0002.png").write_bytes((folder / "0002.png").read_bytes()[:200])
    predictions = predict(model, [folder], tmp_path, NAMES, IDS, skip_bad=True)
    assert [p.picture.image_id for p in predictions] == [1, 3]
    (skipped,) = map(json.loads, (tmp_path / "skipped.jsonl").read_text().splitlines())
    assert skipped["file"].endswith("0002.png")
    for number in (1, 3):
        (folder / f"{number:04}.png").write_text("no picture")
    with pytest.raises(PredictionError, match="3 of 3 pictures"):
        predict(model, [folder], tmp_path, NAMES, IDS, skip_bad=True)


def test_paths_without_pictures_are_named(folder, tmp_path):
    with pytest.raises(PredictionError, match=r"nowhere\.png: does not exist"):
        find_pictures([tmp_path / "nowhere.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(PredictionError, match="empty: is a folder without pictures"):
        find_pictures([tmp_path / "empty"])
    twice = find_pictures([folder, folder / "0001.png"])
    assert [path.name for path in twice] == ["0001.png", "0002.png", "0003.png"]

"""The evaluator against COCO's published figures, hand-computed cases, and pycocotools' own summary."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn.engine.coco_eval import ResultsError, coco_figures, figure_names, read_json

SIZE = (60, 80)


def rle(top, left, bottom, right, size=SIZE):
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    encoded = rle_tools.encode(mask)
    return {"size": list(size), "counts": encoded["counts"].decode()}


def truth(*boxes, first_id=1, **extra):
    return {
        "images": [{"id": 7, "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 3, "name": "thing"}],
        "annotations": [
            {
                "id": number,
                "image_id": 7,
                "category_id": 3,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "segmentation": rle(top, left, bottom, right),
                **extra,
            }
            for number, (top, left, bottom, right) in enumerate(boxes, first_id)
        ],
    }


def result(top, left, bottom, right, score=0.9):
    return {
        "image_id": 7,
        "category_id": 3,
        "score": score,
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": rle(top, left, bottom, right),
    }


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_published_figures(test_data, iou_type):
    folder = test_data("coco-eval")
    expected = json.loads((folder / "expected.json").read_text())
    figures = coco_figures(
        read_json(folder / "instances_val2014_100.json"),
        read_json(folder / f"instances_val2014_fake{iou_type}100_results.json"),
        iou_type,
    )
    assert list(figures) == expected["order"]
    assert list(figures.values()) == pytest.approx(expected[iou_type], abs=1e-9, rel=0)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_one_match_at_known_overlap(iou_type):
    # 20 x 20 against 20 x 26 around it: IoU 400 / 520 = 0.77, over 6 of the 10 thresholds.
    figures = coco_figures(truth((10, 10, 30, 30)), [result(10, 10, 30, 36)], iou_type)
    assert figures["AP"] == pytest.approx(0.6)
    assert figures["AP50"] == figures["AP75"] == pytest.approx(1)
    assert figures["AR1"] == pytest.approx(0.6)
    assert figures["APs"] == pytest.approx(0.6)
    assert figures["APm"] == figures["APl"] == figures["ARl"] == -1


def test_false_alarm_above_the_match_halves_the_precision():
    results = [result(40, 50, 55, 70, score=0.9), result(10, 10, 30, 30, score=0.8)]
    assert coco_figures(truth((10, 10, 30, 30)), results, "segm")["AP"] == pytest.approx(0.5)


def test_crowd_takes_detections_without_cost():
    annotations = truth((10, 10, 30, 30))
    annotations["annotations"] += truth((35, 40, 60, 80), first_id=2, iscrowd=1)["annotations"]
    inside_crowd = result(40, 50, 50, 60, score=0.95)
    figures = coco_figures(annotations, [inside_crowd, result(10, 10, 30, 30)], "segm")
    assert figures["AP"] == pytest.approx(1)


def test_annotation_id_zero_counts_as_found():
    perfect = [result(10, 10, 30, 30)]
    assert coco_figures(truth((10, 10, 30, 30), first_id=0), perfect, "bbox")["AP"] == pytest.approx(1)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_detections_give_zero(iou_type):
    figures = coco_figures(truth((10, 10, 30, 30)), [], iou_type)
    assert [figures[name] for name in ("AP", "AP50", "APs", "AR1", "AR100", "ARs")] == [0] * 6


def test_masks_are_sized_by_their_own_area_whatever_their_boxes():
    # The false alarm's mask is small but its box is not. As a small object it lowers APs; pycocotools would
    # take the box's area, ignore it there, and give 1.
    alarm = result(40, 50, 50, 60, score=0.95) | {"bbox": [0, 0, 70, 55]}
    figures = coco_figures(truth((10, 10, 30, 30)), [alarm, result(10, 10, 30, 30)], "segm")
    assert figures["APs"] == pytest.approx(0.5)


def crowded(count):
    """One image with `count` squares, each found, worst-scored last."""
    boxes = [(y, x, y + 3, x + 3) for y in range(0, 56, 4) for x in range(0, 76, 4)][:count]
    return truth(*boxes), [result(*box, score=1 - i / 1000) for i, box in enumerate(boxes)]


def test_max_dets_counts_what_100_leaves_out():
    ground_truth, results = crowded(200)
    few, many = (coco_figures(ground_truth, results, "segm", max_dets) for max_dets in (100, 300))
    assert few["AR100"] == pytest.approx(0.5)
    assert few["AP"] == pytest.approx(51 / 101)  # recall reaches 0.50: 51 of the 101 points
    assert many["AP"] == many["AR300"] == many["ARs"] == pytest.approx(1)
    assert many["AR10"] == pytest.approx(0.05)
    assert list(many) == list(figure_names(300))
    assert "AR100" not in many


def test_equal_to_the_summary_of_pycocotools(test_data):
    ground_truth = read_json(test_data("coco-eval") / "instances_val2014_100.json")
    results = read_json(test_data("coco-eval") / "instances_val2014_fakebbox100_results.json")[::3]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(ground_truth))
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(json.loads(json.dumps(results))), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = coco_figures(ground_truth, results, "bbox")
    assert list(ours.values()) == pytest.approx(evaluation.stats.tolist(), abs=1e-12)


def test_nothing_is_printed_and_the_input_stays(capsys):
    ground_truth, results = truth((10, 10, 30, 30)), [result(10, 10, 30, 30)]
    before = json.dumps([ground_truth, results])
    coco_figures(ground_truth, results, "segm")
    assert json.dumps([ground_truth, results]) == before
    assert capsys.readouterr() == ("", "")


GOOD = result(10, 10, 30, 30)
DAMAGED = GOOD["segmentation"] | {"counts": GOOD["segmentation"]["counts"][:-1]}


@pytest.mark.parametrize(
    ("results", "iou_type", "words"),
    [
        ({"annotations": []}, "segm", "must hold a JSON list"),
        ([[1, 2]], "segm", "result 0: is a list"),
        ([{k: v for k, v in GOOD.items() if k != "score"}], "segm", "no 'score'"),
        ([{k: v for k, v in GOOD.items() if k != "segmentation"}], "segm", "no 'segmentation'"),
        ([GOOD | {"image_id": 8}], "segm", "image_id 8 is not an image"),
        ([GOOD | {"image_id": [7]}], "segm", "image_id [7] is not an image"),
        ([GOOD | {"category_id": 1}], "bbox", "category_id 1 is not a category"),
        ([GOOD | {"score": float("nan")}], "bbox", "its score is nan"),
        ([GOOD | {"score": "high"}], "bbox", "its score is 'high'"),
        ([GOOD | {"bbox": [1, 2, float("inf"), 4]}], "bbox", "four finite numbers"),
        ([GOOD | {"bbox": [1, 2, -3, 4]}], "bbox", "negative width or height"),
        ([GOOD | {"segmentation": [[1, 2, 3, 4, 5, 6]]}], "segm", "must be an RLE object"),
        ([GOOD | {"segmentation": rle(1, 1, 5, 5, (60, 81))}], "segm", "[60, 81]"),
        ([GOOD | {"segmentation": DAMAGED}], "segm", "RLE"),
        ([GOOD, GOOD | {"image_id": 8}, GOOD | {"image_id": 9}], "segm", "2 problems"),
    ],
)
def test_bad_results_are_named(results, iou_type, words):
    with pytest.raises(ResultsError) as error:
        coco_figures(truth((10, 10, 30, 30)), results, iou_type)
    assert words in str(error.value)


def test_many_problems_are_summed_up():
    with pytest.raises(ResultsError) as error:
        coco_figures(truth((10, 10, 30, 30)), [GOOD | {"image_id": 8}] * 50, "segm")
    assert "50 problems" in str(error.value)
    assert "and 30 more" in str(error.value)
    assert len(str(error.value).splitlines()) == 23


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("annotations"), "is not COCO JSON"),
        (lambda t: t["images"][0].pop("height"), "'height'"),
        (lambda t: t["annotations"][0].pop("area"), "annotation id 1: has no 'area'"),
        (lambda t: t["annotations"][0].update(image_id=99), "image_id 99 is not in 'images'"),
        (lambda t: t["annotations"][0].update(category_id=99), "category_id 99 is not in 'categories'"),
        (lambda t: t["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "fewer than the 6"),
    ],
)
def test_bad_ground_truth_is_named(change, words):
    ground_truth = truth((10, 10, 30, 30))
    change(ground_truth)
    with pytest.raises(ResultsError) as error:
        coco_figures(ground_truth, [GOOD], "segm")
    assert words in str(error.value)


def test_max_dets_has_a_lower_bound():
    with pytest.raises(ValueError, match="max_dets is 10 and must be more than 10"):
        coco_figures(truth((10, 10, 30, 30)), [], "bbox", max_dets=10)


def test_unreadable_json_is_named(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text('[{"image_id": 1')
    with pytest.raises(ResultsError, match=r"broken\.json: is not JSON"):
        read_json(broken)
    with pytest.raises(ResultsError, match=r"missing\.json: cannot be read"):
        read_json(tmp_path / "missing.json")

"""From detections to figures, with a model that knows the answers."""

import pytest
import torch
from rich.console import Console

from mrcnn.data import open_dataset
from mrcnn.engine.checkpoint import CheckpointError, CheckpointInfo
from mrcnn.engine.evaluate import check_classes, detect, evaluate, figures_table, to_results


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_perfect_detections_get_perfect_figures(shapes, clairvoyant, batch_size):
    figures, results = evaluate(clairvoyant(shapes), shapes, batch_size=batch_size)
    for kind in ("bbox", "segm"):
        assert figures[kind]["AP"] == pytest.approx(1)
        assert figures[kind]["AR100"] == pytest.approx(1)
    truth = shapes.coco_ground_truth()["annotations"]
    found, expected = (sorted((r["image_id"], r["category_id"], *r["bbox"]) for r in rows) for rows in (results, truth))
    assert found == expected


def test_labels_of_a_model_with_other_classes_are_translated(clairvoyant, make_shapes, tmp_path):
    """The model knows three categories, in another order of labels; the data have two of them."""
    trained_on = open_dataset(make_shapes(tmp_path / "a", categories={2: "star", 4: "round", 9: "square"}))
    data = open_dataset(make_shapes(tmp_path / "b"))
    assert trained_on.category_ids != data.category_ids
    model = clairvoyant(data)
    for sample in model.samples:
        category = torch.tensor(data.category_ids)[sample.target["labels"]]
        sample.target["labels"] = torch.tensor([trained_on.category_ids.index(int(c)) for c in category])
    figures, _ = evaluate(model, data, category_ids=trained_on.category_ids)
    assert figures["segm"]["AP"] == pytest.approx(1)

    for sample in model.samples:  # a star everywhere, which the data do not know
        sample.target["labels"][0] = trained_on.category_ids.index(2)
    figures, results = evaluate(model, data, category_ids=trained_on.category_ids)
    assert {result["category_id"] for result in results} == {9}
    assert figures["segm"]["AP"] == pytest.approx(0.5)


def test_boxes_become_corner_and_size():
    detections = {
        "boxes": torch.tensor([[1.5, 2.0, 11.5, 5.0]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.5]),
        "masks": [{"size": [4, 4], "counts": "0"}],
    }
    (result,) = to_results(detections, 42, [0, 4, 9])
    assert result == {
        "image_id": 42,
        "category_id": 9,
        "bbox": [1.5, 2.0, 10.0, 3.0],
        "score": 0.5,
        "segmentation": {"size": [4, 4], "counts": "0"},
    }


def test_detecting_leaves_the_mode_of_the_model(shapes, clairvoyant):
    model = clairvoyant(shapes).train()
    assert len(list(detect(model, [shapes[0].image]))) == 1
    assert model.training
    (found,) = detect(model.eval(), [shapes[0].image])
    assert not model.training
    assert not found["scores"].requires_grad


def test_classes_that_mean_something_else_are_refused(shapes):
    def info(**names):
        ids = tuple(int(name[1:]) for name in names)
        return CheckpointInfo("any", {}, ("background", *names.values()), (0, *ids))

    check_classes(info(_4="round", _9="square", _12="star"), shapes)
    check_classes(info(_9="square"), shapes)
    with pytest.raises(CheckpointError, match="4 is 'cat' and 'round'"):
        check_classes(info(_4="cat"), shapes)
    with pytest.raises(CheckpointError, match="no category id in common"):
        check_classes(info(_5="round"), shapes)


def test_table_shows_a_dash_where_there_is_nothing_of_a_size(shapes, clairvoyant):
    figures, _ = evaluate(clairvoyant(shapes), shapes)
    console = Console(width=150)
    with console.capture() as capture:
        console.print(figures_table(figures))
    row = next(line for line in capture.get().splitlines() if "masks" in line)
    cells = [cell.strip() for cell in row.split("│")][1:-1]
    assert cells[1] == "1.000"
    assert cells[6] == "-"  # APl: no object is over 96 x 96

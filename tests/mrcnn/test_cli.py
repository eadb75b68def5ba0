"""Every command through `main`: the real model made small, the real image that comes with the package."""

import dataclasses
import json
import subprocess
import sys
from types import MappingProxyType

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle_tools

import mrcnn
from mrcnn.cli import main
from mrcnn.data import nuclei_dataset
from mrcnn.engine import commands
from mrcnn.engine.checkpoint import load_model, read_info
from mrcnn.engine.output import read_metrics

PRESET = "mask_rcnn_r18_fpn_gn"
SMALL = {
    "min_size": 64,
    "max_size": 512,
    "fpn_channels": 16,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "rpn_samples": 32,
    "proposals_per_level_train": 40,
    "proposals_per_level_test": 40,
    "proposals_train": 60,
    "proposals_test": 60,
    "roi_samples": 16,
    "box_hidden": 16,
    "box_score_threshold": 0.0,
    "detections_per_image": 12,
    "mask_channels": 8,
    "mask_convs": 1,
}
TWELVE = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


@pytest.fixture(autouse=True)
def small_models(monkeypatch):
    """The presets, made small enough to train in a second."""
    presets = MappingProxyType({n: dataclasses.replace(c, **SMALL) for n, c in mrcnn.PRESETS.items()})
    for module in (mrcnn, mrcnn.model, commands):
        monkeypatch.setattr(module, "PRESETS", presets)


def write_nuclei(folder, part="left", name="data.json"):
    """Two crops of the nuclei image as a COCO data set in `folder`. Gives the path of its JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    sample = nuclei_dataset(part)[0]
    images, annotations = [], []
    for number, top in enumerate((0, 256), 1):
        crop = sample.image[:, top : top + 128, :128]
        Image.fromarray((crop.permute(1, 2, 0) * 255).byte().numpy()).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 128, "width": 128})
        for mask in sample.target["masks"][:, top : top + 128, :128]:
            if mask.sum() >= 20:
                rle = rle_tools.encode(np.asfortranarray(mask.numpy()))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 5,
                        "bbox": rle_tools.toBbox(rle).tolist(),
                        "area": int(mask.sum()),
                        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                        "iscrowd": 0,
                    }
                )
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 5, "name": "nucleus"}],
    }
    (folder / name).write_text(json.dumps(document))
    return folder / name


def run(*arguments):
    """Exit code of a command; its tables are wide enough to search."""
    return main([str(argument) for argument in arguments])


@pytest.fixture
def trained(tmp_path):
    """The checkpoint of a tiny training, and the data that it was trained on."""
    data = write_nuclei(tmp_path / "data")
    out = tmp_path / "trained"
    assert run("train", data, "--out", out, "--model", PRESET, "--steps", 2, "--device", "cpu") == 0
    return out / "checkpoint.safetensors", data


def test_demo(tmp_path, capsys):
    out = tmp_path / "demo"
    assert run("demo", "--out", out, "--seed", 1, "--steps", 3, "--device", "cpu") == 0
    figures = json.loads((out / "metrics.json").read_text())
    assert [list(figures[kind]) for kind in ("bbox", "segm")] == [TWELVE, TWELVE]
    assert all(-1 <= value <= 1 for kind in figures.values() for value in kind.values())
    info = read_info(out / "checkpoint.safetensors")
    assert (info.step, info.class_names) == (3, ("background", "nucleus"))
    assert info.extra["training"]["seed"] == 1
    pictures = {path.name for path in (out / "pictures").iterdir()}
    assert pictures == {"nuclei-right_prediction.png", "nuclei-right_truth.png"}
    assert "<svg" in (out / "losses.svg").read_text()
    report = (out / "report.html").read_text()
    for words in ("nuclei (left)", "nuclei (right)", f"{figures['segm']['AP']:.3f}", "mrcnn predict", "<svg"):
        assert words in report
    assert report.count("data:image/jpeg") == 2
    assert read_metrics(out / "metrics.jsonl")[-1]["step"] == 3
    assert "training 3/3" in capsys.readouterr().out


def test_train_evaluates_and_describes_itself(tmp_path, capsys):
    data, val = write_nuclei(tmp_path / "a"), write_nuclei(tmp_path / "b", "right")
    out = tmp_path / "out"
    flags = ("--steps", 2, "--batch-size", 1, "--lr", 0.001, "--eval-every", 1, "--device", "cpu")
    assert run("train", data, "--val", val, "--out", out, "--model", PRESET, *flags) == 0
    said = capsys.readouterr().out
    assert "data.json: 2 images" in said
    assert "COCO figures" in said
    assert list(json.loads((out / "metrics.json").read_text())["segm"]) == TWELVE
    info = read_info(out / "checkpoint.safetensors")
    assert info.category_ids == (0, 5)
    assert (info.extra["training"]["lr"], info.extra["training"]["batch_size"]) == (0.001, 1)
    assert [r["step"] for r in read_metrics(out / "metrics.jsonl") if "eval" in r] == [1]


def test_images_in_a_folder_of_their_own(tmp_path):
    data = write_nuclei(tmp_path / "images").rename(tmp_path / "labels.json")
    out = tmp_path / "out"
    flags = ("--images", tmp_path / "images", "--steps", 1, "--device", "cpu")
    assert run("train", data, "--out", out, "--model", PRESET, *flags) == 0
    assert not (out / "metrics.json").exists()


def test_checkpoints_rebuild_the_model(trained):
    checkpoint, _ = trained
    model, info = load_model(checkpoint)
    assert model.config.num_classes == 2
    assert model.config.fpn_channels == 16
    assert model.config.anchor_sizes == SMALL["anchor_sizes"]
    assert not model.training
    assert info.preset == PRESET
    again, _ = load_model(checkpoint, detections_per_image=3)
    image = nuclei_dataset("left")[0].image[:, :128, :128]
    with torch.no_grad():
        many, few = model([image])[0], again([image])[0]
    assert len(few["scores"]) == 3
    assert torch.equal(many["scores"][:3], few["scores"])


def test_resume_goes_on_and_is_asked_for(trained, tmp_path, capsys):
    checkpoint, data = trained
    out = checkpoint.parent
    arguments = ("train", data, "--out", out, "--model", PRESET, "--steps", 4, "--device", "cpu")
    assert run(*arguments) == 2
    assert "already holds a training" in capsys.readouterr().err
    assert run(*arguments, "--resume") == 0
    assert read_info(checkpoint).step == 4
    assert run("train", data, "--out", tmp_path / "new", "--resume") == 2
    assert "no training to resume" in capsys.readouterr().err


def test_init_starts_from_a_checkpoint(trained, tmp_path):
    checkpoint, data = trained
    out = tmp_path / "from"
    flags = ("--init", checkpoint, "--steps", 1, "--lr", 1e-12, "--device", "cpu")
    assert run("train", data, "--out", out, "--model", PRESET, *flags) == 0
    before, after = (load_model(p)[0].state_dict() for p in (checkpoint, out / "checkpoint.safetensors"))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_eval_of_a_checkpoint(trained, tmp_path, capsys):
    checkpoint, data = trained
    figures, results = tmp_path / "figures.json", tmp_path / "results.json"
    assert run("eval", checkpoint, data, "--json", figures, "--save-results", results, "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert "boxes" in said
    assert "masks" in said
    written = json.loads(figures.read_text())
    assert list(written) == TWELVE
    # Its results, evaluated as a file, give the same figures.
    again = tmp_path / "again.json"
    assert run("eval", "--annotations", data, "--results", results, "--json", again) == 0
    assert json.loads(again.read_text()) == written


def test_eval_counts_more_detections_when_asked(trained, tmp_path):
    checkpoint, data = trained
    counts = {}
    for limit in (11, 30):
        results, figures = tmp_path / f"{limit}.json", tmp_path / f"{limit}_figures.json"
        flags = ("--max-dets", limit, "--save-results", results, "--json", figures, "--device", "cpu")
        assert run("eval", checkpoint, data, *flags) == 0
        assert f"AR{limit}" in json.loads(figures.read_text())
        ids = [result["image_id"] for result in json.loads(results.read_text())]
        counts[limit] = ids.count(1)
    assert counts == {11: 12, 30: 30}  # 12 is the model's own limit


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_eval_of_cocos_own_files(test_data, tmp_path, iou_type):
    folder = test_data("coco-eval")
    expected = json.loads((folder / "expected.json").read_text())
    flags = ("--iou-type", iou_type, "--json", tmp_path / "figures.json")
    results = folder / f"instances_val2014_fake{iou_type}100_results.json"
    truth = folder / "instances_val2014_100.json"
    assert run("eval", "--annotations", truth, "--results", results, *flags) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == expected["order"]
    assert list(figures.values()) == pytest.approx(expected[iou_type], abs=1e-9, rel=0)


def test_predict(trained, tmp_path, capsys):
    checkpoint, data = trained
    out = tmp_path / "predictions"
    flags = ("--out", out, "--score", 0.0, "--device", "cpu")
    assert run("predict", checkpoint, data.parent, data.parent / "1.png", *flags) == 0
    results = json.loads((out / "results.json").read_text())
    assert {r["image_id"] for r in results} == {1, 2}
    assert {r["category_id"] for r in results} == {5}
    assert all(rle_tools.decode(r["segmentation"]).shape == (128, 128) for r in results)
    assert {path.name for path in (out / "pictures").iterdir()} == {"1.png", "2.png"}
    assert "nucleus 12" in capsys.readouterr().out


def test_models_lists_every_preset(capsys):
    assert run("models") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in mrcnn.PRESETS)


def test_help_is_quick_and_whole():
    script = (
        "import sys, mrcnn.cli\n"
        "codes = [mrcnn.cli.main([*words, '--help']) for words in ([], ['train'], ['predict'])]\n"
        "assert codes == [0, 0, 0]\n"
        "assert 'mrcnn.engine.commands' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for words in ("demo", "--resume", "--max-seconds", "--score", "short side"):
        assert words in done.stdout


def damage(data, what):
    """Spoils one thing in a data set."""
    document = json.loads(data.read_text())
    annotation = document["annotations"][0]
    if what == "missing image":
        (data.parent / "2.png").unlink()
    elif what == "truncated image":
        content = (data.parent / "2.png").read_bytes()
        (data.parent / "2.png").write_bytes(content[: len(content) // 2])
    elif what == "unknown image id":
        annotation["image_id"] = 77
    elif what == "unknown category id":
        annotation["category_id"] = 77
    elif what == "box without area":
        annotation["bbox"][2] = 0
    elif what == "nan box":
        annotation["bbox"][0] = float("nan")
    elif what == "odd polygon":
        annotation["segmentation"] = [[1, 1, 9, 1, 9, 9, 1]]
    elif what == "rle of wrong size":
        annotation["segmentation"]["size"] = [64, 64]
    elif what == "no annotation":
        document["annotations"] = []
    data.write_text("{" if what == "not json" else json.dumps(document))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing image", "2.png"),
        ("truncated image", "2.png"),
        ("unknown image id", "annotation 1"),
        ("unknown category id", "annotation 1"),
        ("box without area", "annotation 1"),
        ("nan box", "annotation 1"),
        ("odd polygon", "annotation 1"),
        ("rle of wrong size", "annotation 1"),
        ("no annotation", "no object is annotated"),
        ("not json", "data.json"),
    ],
)
def test_bad_data_are_named_before_training(tmp_path, capsys, what, words):
    data = write_nuclei(tmp_path / "data")
    damage(data, what)
    assert run("train", data, "--out", tmp_path / "out", "--model", PRESET, "--steps", 1) == 2
    said = capsys.readouterr()
    assert said.err.startswith("mrcnn: ")
    assert words in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_skip_bad_goes_on_and_lists_what_it_left_out(tmp_path):
    data = write_nuclei(tmp_path / "data")
    damage(data, "odd polygon")
    out = tmp_path / "out"
    flags = ("--steps", 1, "--skip-bad", "--device", "cpu")
    assert run("train", data, "--out", out, "--model", PRESET, *flags) == 0
    (skipped,) = map(json.loads, (out / "skipped.jsonl").read_text().splitlines())
    assert skipped["annotation_id"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "{data}", "--out", "{out}", "--model", "mask_rcnn_r1"), "--model is 'mask_rcnn_r1'"),
        (("train", "{data}", "--out", "{out}", "--lr", "-1"), "lr is -1.0 and must be more than 0"),
        (("train", "{data}", "--out", "{out}", "--min-size", "900"), "--min-size is 900"),
        (("train", "{data}", "--out", "{out}", "--eval-every", "5"), "need --val"),
        (("train", "{data}", "--out", "{out}", "--device", "abacus"), "--device is 'abacus'"),
        (("train", "{data}", "--out", "{data}/out"), "cannot be used as an output folder"),
        (("train", "{data}", "--out", "{out}", "--init", "{data}"), "data.json"),
        (("train", "{out}/none.json", "--out", "{out}"), "none.json"),
        (("demo", "--out", "{data}"), "cannot be used as an output folder"),
        (("eval",), "Give either a checkpoint and data"),
        (("eval", "{data}"), "Give either a checkpoint and data"),
        (("eval", "{data}", "{data}"), "is not a checkpoint"),
        (("eval", "{data}", "{data}", "--max-dets", "5"), "--max-dets is 5"),
        (("eval", "--annotations", "{data}", "--results", "{data}"), "must hold a JSON list"),
        (("eval", "--annotations", "{data}", "--results", "{out}/none.json"), "none.json: cannot be read"),
        (("predict", "{data}", "{data}"), "is not a checkpoint"),
        (("predict", "{data}", "{data}", "--score", "7"), "--score is 7.0"),
        (("predict", "{data}"), "Give at least one picture"),
    ],
)
def test_mistakes_end_in_one_message_and_code_2(tmp_path, capsys, arguments, words):
    data = write_nuclei(tmp_path / "data")
    filled = [word.format(data=data, out=tmp_path / "out") for word in arguments]
    assert run(*filled) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert "Traceback" not in said.err


def test_arguments_that_do_not_parse_have_code_2(capsys):
    assert run("train") == 2
    assert run("fly") == 2
    assert "--out" in capsys.readouterr().err


def test_checkpoint_of_other_categories_is_refused(trained, tmp_path, capsys):
    checkpoint, data = trained
    document = json.loads(data.read_text())
    document["categories"] = [{"id": 5, "name": "cat"}]
    data.write_text(json.dumps(document))
    assert run("eval", checkpoint, data, "--device", "cpu") == 2
    assert "5 is 'nucleus' and 'cat'" in capsys.readouterr().err


def test_damaged_checkpoint_and_bad_pictures(trained, tmp_path, capsys):
    checkpoint, data = trained
    (data.parent / "0.png").write_text("no picture")
    out = ("--out", tmp_path / "out", "--device", "cpu")
    assert run("predict", checkpoint, data.parent, *out) == 2
    assert "0.png" in capsys.readouterr().err
    assert run("predict", checkpoint, data.parent, *out, "--skip-bad") == 0
    assert "0.png" in (tmp_path / "out" / "skipped.jsonl").read_text()
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    capsys.readouterr()
    assert run("predict", checkpoint, data.parent, *out) == 2
    assert "damaged" in capsys.readouterr().err

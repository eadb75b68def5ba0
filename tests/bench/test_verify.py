"""`python -m bench verify`: what it holds for wrong, on operations that are made wrong on purpose."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

import kernels
from bench import verify
from bench.__main__ import main
from bench.error_rule import compare, compare_exactly
from bench.verification import outcomes
from bench.verification.case import Finding, verify_case
from bench.verification.operations import OPERATIONS, Problem
from bench.verification.operations.boxes import decode_boxes
from bench.verification.operations.regions import roi_align
from bench.verification.outcomes import verify_one
from bench.verification.places import Compute, Place, Seen, different_bits
from bench.verification.scenes import Scene, largest_gap, scenes
from kernels.eager import nms as eager_nms
from kernels.eager import roi_align as eager_roi_align

NAN, INF = float("nan"), float("inf")


class Here:
    """Stands for a place with kernels: eager ones."""

    size = "tiny"
    device = "cpu"

    def describe(self) -> str:
        return "a stand-in"

    def run(self, compute: Compute) -> Seen:
        with kernels.use("eager"):
            return Seen({"": compute()})


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    monkeypatch.setenv("MRCNN_VIRTUAL_GPU_CACHE", str(tmp_path / "cache"))  # what a stand-in did is nobody else's
    monkeypatch.setattr(verify, "place", lambda name: Here())
    monkeypatch.setattr(verify, "environment_for", lambda name: None)
    monkeypatch.setattr(verify, "default_jobs", lambda name: 1)
    return Here()  # type: ignore[return-value]


NO_OPERATIONS = {
    "use": "chooses the implementation",
    "MaskCounts": "the type of what mask_loss_with_counts returns",
    "PackedMasks": "the type of what pack_masks returns",
    "Polygons": "the type of what rasterize_polygons takes",
    "polygons_from_coco": "makes that of lists on the host, without computing",
}


def test_every_public_operation_is_verified() -> None:
    assert {name.partition(":")[0] for name in OPERATIONS} == set(kernels.__all__) - set(NO_OPERATIONS)
    assert set(NO_OPERATIONS) <= set(kernels.__all__)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.usefixtures("here")
def test_what_is_right_holds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = ("one pixel", "empty", "not finite")
    code = main(["verify", "--on", "virtual", "--operation", name, "--shape", *shapes, "--dtype", "bfloat16"])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "BREACH" not in printed


@pytest.mark.usefixtures("here")
def test_a_wrong_selection_is_a_breach(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = eager_nms.segmented_nms

    def wrong(*arguments: Any) -> tuple[Tensor, Tensor]:
        keep, counts = right(*arguments)
        return keep.flip(1), counts

    monkeypatch.setattr(eager_nms, "segmented_nms", wrong)
    file = tmp_path / "made" / "verified.json"
    pick = ["--operation", "segmented_nms", "--dtype", "float16", "--shape", "pyramid", "empty"]
    assert main(["verify", "--on", "virtual", *pick, "--json", str(file)]) == 1
    printed, progress = capsys.readouterr()
    assert progress.startswith("segmented_nms: 2 cases, 0 of them from the disk, 1 with a breach, ")
    assert "BREACH segmented_nms, float16, contiguous, pyramid: eager, kept: " in printed
    assert "elements differ, at [0, 0]" in printed
    assert "empty: eager" not in printed
    written = json.loads(file.read_text())
    assert written["device"] == "a stand-in"
    assert {"torch", "triton", "torchvision", "revision"} <= set(written)
    held = {case["shape"]: case["holds"] for case in written["cases"]}
    assert held == {"pyramid": False, "empty": True}
    sides = {finding["side"] for case in written["cases"] for finding in case["findings"] if not finding["holds"]}
    assert sides == {"triton", "eager"}


@pytest.mark.usefixtures("here")
def test_only_what_held_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The empty case holds though the operation is wrong; the other is verified until it is right."""
    right = eager_nms.segmented_nms
    file = tmp_path / "verified.json"

    def verified(*arguments: str) -> tuple[int, str]:
        pick = ["--operation", "segmented_nms", "--dtype", "float32", "--shape", "pyramid", "empty"]
        code = main(["verify", "--on", "virtual", *pick, "--json", str(file), *arguments])
        return code, capsys.readouterr().out.splitlines()[-1].rpartition(",")[0]

    monkeypatch.setattr(
        eager_nms, "segmented_nms", lambda *arguments: tuple(each.flip(-1) for each in right(*arguments))
    )
    assert verified() == (1, "on virtual: 2 cases, 0 of them from the disk, 1 with a breach")
    made = json.loads(file.read_text())["cases"]
    assert verified() == (1, "on virtual: 2 cases, 1 of them from the disk, 1 with a breach")
    again = json.loads(file.read_text())["cases"]
    assert [case["remembered"] for case in again] == [False, True]
    assert again[1] == {**made[1], "remembered": True}
    monkeypatch.setattr(eager_nms, "segmented_nms", right)
    assert verified() == (0, "on virtual: 2 cases, 1 of them from the disk, 0 with a breach")
    assert verified() == (0, "on virtual: 2 cases, 2 of them from the disk, 0 with a breach")
    assert verified("--fresh") == (0, "on virtual: 2 cases, 0 of them from the disk, 0 with a breach")


def test_what_an_outcome_is_kept_by(here: Place) -> None:
    """Each of the operation, dtype, layout, whole shape and place; and every finding comes back from the disk."""
    scene = scenes("tiny")[0]
    first = verify_one("roi_align", "float32", "contiguous", scene, here)
    kept = verify_one("roi_align", "float32", "contiguous", scene, here)
    assert (first.remembered, kept.remembered) == (False, True)
    assert kept.findings == first.findings
    assert not verify_one("roi_align", "float32", "contiguous", replace(scene, rois=3), here).remembered
    assert not verify_one("roi_align", "float32", "channels last", scene, here).remembered
    assert not verify_one("roi_align", "float16", "contiguous", scene, here).remembered
    assert not verify_one("roi_pool", "float32", "contiguous", scene, here).remembered
    there, gpu = Here(), Here()
    there.describe = lambda: "another stand-in"  # type: ignore[method-assign]
    assert not verify_one("roi_align", "float32", "contiguous", scene, there).remembered  # type: ignore[arg-type]
    gpu.device, gpu.describe = "cpu:0", lambda: "a GPU"  # type: ignore[method-assign]
    for _ in range(2):
        assert not verify_one("roi_align", "float32", "contiguous", scene, gpu).remembered  # type: ignore[arg-type]


def test_every_source_of_an_outcome_is_there() -> None:
    assert all(source.exists() for source in outcomes.SOURCES)


@pytest.mark.usefixtures("here")
def test_a_wrong_gradient_is_a_breach(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = eager_roi_align.roi_align_backward

    def wrong(*arguments: Any) -> list[Tensor]:
        grads = right(*arguments)
        grads[0][0, 0, 0, 0] += 0.01
        return grads

    monkeypatch.setattr(eager_roi_align, "roi_align_backward", wrong)
    pick = ["--operation", "roi_align", "--dtype", "float32", "--shape", "odd", "--layout", "contiguous"]
    assert main(["verify", "--on", "virtual", *pick]) == 1
    printed = capsys.readouterr().out
    assert "BREACH roi_align, float32, contiguous, odd: eager, gradient of input: largest error 1.000e-02" in printed
    assert "result" not in printed.split("┏")[0].replace("gradient of input", "")


def test_processes_give_the_same(here: Place) -> None:
    pick = [("nms", "float32", "contiguous", scene) for scene in scenes("tiny")[:3]]
    alone, together = ([*verify.verified(pick, here, jobs, fresh=True)] for jobs in (1, 2))
    assert [case.name for case in together] == [f"nms, float32, contiguous, {scene.name}" for *_, scene in pick]
    assert [case.findings for case in together] == [case.findings for case in alone]


def test_what_raises_is_a_breach(here: Place) -> None:
    def broken(input: Tensor, rois: Tensor) -> Tensor:
        if kernels.dispatch.asked_for() == "eager":
            raise RuntimeError("no such kernel")
        return kernels.roi_align(input, rois, 2)

    problem = roi_align(scenes("tiny")[0], torch.float32, "contiguous")
    findings = verify_case(_with(problem, call=broken), torch.float32, here, "reference")
    told = {finding.side: str(finding.comparison) for finding in findings if not finding.holds}
    assert told["eager"] == told["triton"] == "RuntimeError: no such kernel"


def test_torchvision_judges_the_reference(here: Place) -> None:
    """A mistake that all of our own implementations share."""
    problem = roi_align(scenes("tiny")[0], torch.float32, "contiguous")
    other = _with(problem, theirs=lambda input, rois: 1.001 * problem.theirs(input=input, rois=rois))
    assert all(finding.holds for finding in verify_case(problem, torch.float32, here, "reference"))
    findings = verify_case(other, torch.float32, here, "reference")
    assert {finding.side for finding in findings if not finding.holds} == {"torchvision"}
    for dtype in (torch.bfloat16, torch.float64):
        problem = roi_align(scenes("tiny")[0], dtype, "contiguous")
        wrong = _with(problem, theirs=lambda input, rois: 1.1 * problem.theirs(input=input, rois=rois))  # noqa: B023
        assert not all(finding.holds for finding in verify_case(wrong, dtype, here, "reference"))


def test_float64_holds_to_its_own_epsilon(here: Place) -> None:
    problem = roi_align(scenes("tiny")[0], torch.float64, "channels last")
    assert all(finding.holds for finding in verify_case(problem, torch.float64, here, "reference"))

    def slightly_wrong(input: Tensor, rois: Tensor) -> Tensor:
        pooled = problem.call(input=input, rois=rois)
        assert isinstance(pooled, Tensor)
        return pooled * (1 + 1e-13) if kernels.dispatch.asked_for() == "eager" else pooled

    findings = verify_case(_with(problem, call=slightly_wrong), torch.float64, here, "reference")
    assert {finding.side for finding in findings if not finding.holds} == {"triton", "eager"}


def _with(problem: Problem, **changes: Any) -> Problem:
    return Problem(**{**vars(problem), **changes})


def test_approximate_ends_bind_selections_only() -> None:
    """The table shows what they do to values; only what a person must act on ends the run with 1."""
    far = compare(torch.ones(3), torch.zeros(3).double(), torch.zeros(3), torch.float32)
    case = verify.Outcome("op", "float32", "any", "some", 1.0, (Finding("triton", "out", far, "low", binding=False),))
    target = Console(file=io.StringIO(), width=160)
    assert verify.report([case], "virtual", {"device": "none"}, target, None) == 0
    case = verify.Outcome("op", "float32", "any", "some", 1.0, (Finding("triton", "out", far, "low"),))
    assert verify.report([case], "virtual", {"device": "none"}, target, None) == 1


class AtAnEnd(Here):
    """Stands for a place with approximate instructions, which change the scores."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change

    def run(self, compute: Compute) -> Seen:
        seen = super().run(compute)
        seen.runs["low"] = {**seen.runs[""], "scores": self.change(seen.runs[""]["scores"])}
        return seen


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        (lambda scores: scores * (1 + 3e-7), True),
        (lambda scores: scores * 1.01, False),  # made of something else
        (lambda scores: scores.where(scores != scores.max(), -INF), False),  # another box is struck
        (lambda scores: scores.where(scores != -INF, 0.5), False),  # one is not struck
    ],
)
def test_what_is_chosen_is_the_same_at_both_ends(change: Callable[[Tensor], Tensor], holds: bool) -> None:
    problem = decode_boxes(scenes("tiny")[0], torch.float32, "contiguous")
    place = AtAnEnd(change)
    findings = verify_case(problem, torch.float32, place, "reference")  # type: ignore[arg-type]
    (low,) = [each for each in findings if (each.run, each.output) == ("low", "scores")]
    assert not low.comparison.holds
    assert [each for each in findings if not each.holds] == ([] if holds else [low])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--operation", "roi_aline"], "no operation 'roi_aline' here; there is roi_align, "),
        (["--shape", "huge"], "no shape 'huge' here; there is pyramid, "),
        (["--dtype", "int8"], "no dtype 'int8' here; there is float32, "),
        (["--operation", "nms", "--layout", "blocks"], "no operation of those has one of these layouts"),
        (["--jobs", "0"], "jobs is 0; it must be 1 or more"),
        (["--on", "paper"], "invalid choice"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_wrong_call(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--on", "virtual", *arguments]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(verify, "environment_for", lambda name: None)
    assert main(["verify", "--on", "gpu"]) == 2
    assert "there is no GPU here" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["tiny", "small", "full"])
def test_shapes(size: Any) -> None:
    found = {scene.name: scene for scene in scenes(size)}
    assert len(found) == len(scenes(size))
    assert len(found["empty"].regions) == 0
    assert not bool(found["not finite"].regions.isfinite().all())
    assert found["one pixel"].features[-1].shape[2:] == (1, 1)
    assert found["odd"].pyramid.channels % 2 == 1
    far = found["far outside"].regions
    assert bool((far[:, 1] > found["far outside"].pyramid.width).any())
    if size == "full":
        assert found["pyramid"].pyramid.shapes()[0] == (2, 256, 200, 336)
        assert len(found["pyramid"].regions) == 1024


def test_scores_have_ties_and_boxes_repeat() -> None:
    _, scores = Scene("", candidates=100).segments
    assert all(len(each.unique()) < 100 for each in scores)
    boxes, scores = Scene("", boxes="not finite", candidates=100).segments
    assert bool(boxes.isnan().any())
    assert bool(scores.isnan().any())
    assert bool((scores == -INF).any())


def test_the_widest_gap() -> None:
    assert largest_gap(torch.tensor([0.0, 0.45, 0.47, 0.51, 0.52, 0.9]).double()) == pytest.approx(0.49)
    assert largest_gap(torch.tensor([0.0, 1.0]).double()) == 0.5


def test_comparison_tells_what_and_where() -> None:
    truth = torch.tensor([[1.0, 2.0], [3.0, NAN]]).double()
    right = truth.float()
    assert compare(right, truth, right, torch.float32).holds
    assert compare(right, truth, right, torch.float32).share == 0
    off = right.clone()
    off[1, 0] += 1
    found = compare(off, truth, right, torch.float32)
    assert not found.holds
    assert "largest error 1.000e+00 is above" in str(found)
    assert "at [1, 0] 4 and not 3" in str(found)
    off[1, 1] = 5
    assert "at [1, 1] 5 and not nan" in str(compare(off, truth, right, torch.float32))
    assert "shape" in str(compare(right[0], truth, right, torch.float32))


def test_exact_comparison() -> None:
    a = torch.tensor([1.0, NAN, INF])
    assert compare_exactly(a, a.clone()).holds
    assert "1 of 3 elements differ, at [0] 2 and not 1" in str(compare_exactly(torch.tensor([2.0, NAN, INF]), a))
    assert "dtype" in str(compare_exactly(a.double(), a))
    assert compare_exactly(torch.zeros(0), torch.zeros(0)).holds


def test_different_bits() -> None:
    first = {"a": torch.tensor([0.0, NAN, 1.0]), "b": torch.tensor([True])}
    second = {"a": torch.tensor([-0.0, NAN, 1.0]), "b": torch.tensor([True])}
    assert different_bits(first, second) == {"a": 1}
    assert different_bits(first, first) == {}

"""Rows of counts on a tiny workload, against sums by hand; what is wrong has no row."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import kernels
from bench.cases import QUICK, Pyramid, Workload
from bench.kernel_figures import counts as kernel_counts
from bench.kernel_figures import mask_predict_counts
from bench.kernel_figures import rows as kernel_rows
from bench.kernel_figures.bars import BARS, with_ratios
from bench.kernel_figures.cases import OPERATIONS, WITH_BARS, Case, Inputs, cases, mask_loss, roi_align, segmented_nms
from bench.kernel_figures.cases.mask_head import mask_predict_loss
from bench.kernel_figures.checks import WrongResult
from bench.kernel_figures.counts import count
from bench.kernel_figures.torchvision_counts import TORCHVISION, count_torchvision
from bench.results import Row

pytestmark = pytest.mark.compiled
TINY = Workload(Pyramid(2, 64, 96, 16), 6, 2, 90, 20, 3, 5, 14)


def test_roi_align() -> None:
    case = roi_align(7, torch.float32, "channels last", 4, TINY)
    forward, backward = count(case)
    assert (forward.case, backward.case) == ("roi_align 7x7, forward", "roi_align 7x7, backward")
    for row in (forward, backward):
        assert row.figures["orders with the same bits"] == 3
        assert row.figures["M atomic sectors"] == row.figures["waits"] == row.figures["spilled bytes"] == 0
        assert 0 < row.figures["registers"] <= 128
        assert "num_warps" in row.config
        moved = row.figures["DRAM, MB"] + row.figures["PyTorch, MB"]
        assert row.figures["moved, MB"] == pytest.approx(moved)
        assert row.figures["DRAM / least"] == pytest.approx(moved / row.figures["least, MB"])
    assert 0.98 < forward.figures["DRAM / least"] < 1.1
    assert forward.figures["launches"] == 2  # RoIs are put in order, then pooled
    theirs = count_torchvision("roi_align", 7, 4, TINY)
    assert [row.case for row in theirs] == [forward.case, backward.case]
    assert theirs[0].figures["M atomic sectors"] == 0 < theirs[1].figures["M atomic sectors"]


def test_segmented_nms() -> None:
    (row,) = count(segmented_nms(4, replace(TINY, boxes=300)), orders=())
    parts = row.figures["mask kernel, M instructions"], 2e-6 * row.figures["reduction, instructions a segment"]
    assert max(parts) < row.figures["M instructions"] <= sum(parts) + 1e-9
    assert row.figures["waits"] == 0
    assert "orders with the same bits" not in row.figures


def test_mask_loss() -> None:
    forward, backward = count(mask_loss(2, torch.bfloat16, 4, TINY), orders=())
    dense, residual = 6 * 5 * 14 * 14 * 2, 6 * 14 * 14 * 4
    assert 1 + residual / dense <= backward.figures["moved / dense gradient"] < 1 + 2.2 * residual / dense
    assert "moved / dense gradient" not in forward.figures
    (theirs,) = count_torchvision("mask_loss", 0, 4, TINY)
    masks, logits = 2 * 15 * 64 * 96, 6 * 5 * 14 * 14 * 4
    # The cast of the masks reads a byte and writes four of each pixel; the logits' gradient is zeroed.
    assert 1e6 * theirs.figures["moved, MB"] > 5 * masks + logits
    assert theirs.figures["launches"] == 2


@pytest.mark.parametrize(
    "case",
    list(cases(operations=[each for each in OPERATIONS if each not in WITH_BARS], workload=QUICK)),
    ids=lambda case: f"{case.name}, {case.dtype_name}",
)
def test_operations_without_bars(case: Case) -> None:
    """What is moved is close to the least where nothing is prepared, and never below it."""
    rows = count(case, orders=())
    assert [row.case for row in rows] == [f"{case.name}, {direction}" for direction in case.least(case.inputs())]
    for row in rows:
        assert row.figures["DRAM / least"] > 0.99
        assert row.figures["spilled bytes"] == 0
        assert row.figures["launches"] > 0
    if case.operation in ("roi_pool", "mask_predict", "mask_predict_loss", "paste_masks", "decode_boxes"):
        assert max(row.figures["DRAM / least"] for row in rows) < 1.1


def test_mask_predict_loss_has_no_logits_of_all_classes() -> None:
    """A cell's logit of one class is the largest thing there is, besides what is given and its gradients."""
    for dtype in (torch.float32, torch.bfloat16):
        row = mask_predict_counts.count_mask_predict_loss(dtype, 4, TINY)
        assert row.figures[mask_predict_counts.FIGURE] == 1 / TINY.classes


def test_logits_of_all_classes_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_all(dtype: torch.dtype, seed: int, workload: Workload) -> Case:
        case = mask_predict_loss(dtype, seed, workload)

        def ours(inputs: Inputs) -> tuple[Tensor, ...]:
            features, weight, bias = inputs["leaves"]
            logits = torch.nn.functional.conv2d(features, weight[:, :, None, None], bias)
            return (kernels.mask_loss(logits, inputs["labels"], inputs["boxes"], inputs["masks"], inputs["index"]),)

        return replace(case, ours=ours)

    monkeypatch.setattr(mask_predict_counts, "mask_predict_loss", with_all)
    row = mask_predict_counts.count_mask_predict_loss(torch.float32, 4, TINY)
    assert row.figures[mask_predict_counts.FIGURE] >= 1


def test_every_figure_that_a_bar_is_about_is_counted() -> None:
    """Whatever the workload: a bar whose figure nobody makes would not hold."""
    workload = replace(TINY, boxes=300)
    rows: list[Row] = []
    for operation in WITH_BARS:
        rows += count_torchvision(operation, 7, 4, workload)
        for case in cases((4,), [operation], [torch.float32], workload):
            if "14x14" not in case.name or operation != "roi_align":
                rows += [with_ratios(row, rows) for row in count(case)]
    rows.append(mask_predict_counts.count_mask_predict_loss(torch.float32, 4, workload))
    counted: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row.by != TORCHVISION:
            counted.setdefault((row.case.split(" ")[0], row.case.split(", ")[-1]), set()).update(row.figures)
    for bar in BARS:
        assert bar.figure in counted[bar.case.split(" ")[0], bar.case.split(", ")[-1]], bar


def test_a_wrong_result_has_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    case = mask_loss(2, torch.float32, 4, TINY)

    def wrong(inputs: Inputs) -> tuple[Tensor, ...]:
        return (case.ours(inputs)[0] * 1.001,)

    with pytest.raises(WrongResult, match="mask_loss 14x14, ratio 2"):
        count(replace(case, ours=wrong), orders=())
    monkeypatch.setattr(kernel_rows, "cases", lambda *_: [replace(case, ours=wrong), case])
    monkeypatch.setattr(kernel_rows, "count_torchvision", lambda *_: [])
    monkeypatch.setattr(kernel_rows, "cached", lambda name, sources, packages, make, fresh: (make(), False))
    monkeypatch.setattr(kernel_counts, "ORDERS", ())
    told: list[str] = []
    rows: list[Row] = [row for row, _ in kernel_rows.every(["mask_loss"], [torch.bfloat16], [4], TINY, told)]
    assert len(told) == 1
    assert "mask_loss" in told[0]
    whole = next(cases(operations=["mask_predict_loss"], workload=TINY))
    assert [row.case for row in rows] == [
        *(f"{case.name}, {direction}" for direction in ("forward", "backward")),
        f"{whole.name}, forward and backward",
    ]


def test_bits_that_depend_on_the_order_are_wrong() -> None:
    case = mask_loss(2, torch.float32, 4, TINY)
    calls = 0

    def moody(inputs: Inputs) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        return (case.ours(inputs)[0] * (1 + 1e-7 * (calls == 2)),)

    with pytest.raises(WrongResult, match="other bits"):
        count(replace(case, ours=moody))

"""RoIAlign by direct sampling, which ours is measured beside: its results, and why it is not what we have."""

import pytest
import torch

from bench.cases import QUICK
from bench.kernel_figures import direct_sampling
from bench.kernel_figures.checks import WrongResult
from bench.kernel_figures.direct_sampling import SHAPES, measure


@pytest.mark.parametrize(("ratio", "dtype"), [(2, torch.float32), (-1, torch.bfloat16)])
def test_right_and_dearer(ratio: int, dtype: torch.dtype) -> None:
    """A wrong result of either form raises."""
    ours, *others = measure([14], [dtype], [ratio], [4], QUICK)
    assert ours.by == "separable"
    assert len(others) == len(SHAPES)
    for row in others:
        assert row.by.startswith("direct")
        assert row.case == ours.case
        for figure in ("M instructions", "M L1 lines"):
            assert row.figures[figure] > ours.figures[figure]


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    direct = direct_sampling.direct
    monkeypatch.setattr(direct_sampling, "direct", lambda *arguments: 1.001 * direct(*arguments))
    with pytest.raises(WrongResult, match="roi_align 3x3"):
        list(measure([3], [torch.float32], [2], [2], QUICK))


def test_the_command_prints_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    picks = ["--quick", "--sizes", "2", "--dtypes", "float32", "--ratios", "1", "--rois", "1"]
    assert direct_sampling.main(picks) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert "time bound, us" in heading
    assert [line.split(":")[0] for line in lines] == [
        "separable",
        *(f"direct, {bins} bins in {warps} warps" for bins, warps in SHAPES),
    ]
    assert "roi_align 2x2, ratio 1, 2 x 1 RoIs, forward, float32" in lines[0]

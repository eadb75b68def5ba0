"""RoIAlign of overlapping RoIs together, interpreted: against torchvision, and to the bit against each RoI alone."""

from functools import partial
from typing import Any

import pytest
import rois_in_order
import torch
from error_rule import assert_error_rule
from rois_to_align import ROIS, Case
from torch import Tensor

from kernels.gpu import roi_align as module

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

NAN, INF = float("nan"), float("inf")
SCALES = (0.25, 0.125, 0.0625)
ZEROS = torch.tensor(
    [[0, NAN, 1, 20, 20], [-1, 1, 1, 20, 20], [2, 1, 1, 20, 20], [NAN, 1, 1, 9, 9], [1, 1, -INF, 9, INF]]
)


def together(case: Case) -> Tensor:
    """The result, which must be that of RoIs alone to the bit."""
    with pytest.MonkeyPatch.context() as patch:
        calls = []

        def record(*arguments: Any) -> None:
            calls.append(arguments)
            roi_align_neighbours(*arguments)

        roi_align_neighbours = module.roi_align_neighbours
        patch.setattr(module, "roi_align_neighbours", record)
        result = module.roi_align(case.features, case.rois, *case.arguments)
        assert len(calls) == 1
        patch.setattr(module, "suits_neighbours", lambda *_: False)
        alone = module.roi_align(case.features, case.rois, *case.arguments)
        assert len(calls) == 1
    assert torch.allclose(result, alone, rtol=0, atol=0, equal_nan=True)
    return result


def mixed(number: int) -> Tensor:
    """RoIs of all levels and both images, here and there one that gives zeros."""
    rois = torch.cat([ROIS[:3], ZEROS, ROIS[3:]]).repeat(1 + number // 13, 1)[:number].clone()
    rois[:, 1:] += torch.arange(number)[:, None] // 13 * 1.37
    return rois


@pytest.mark.parametrize("number", [1, 33, 150])
def test_order(number: int) -> None:
    rois = rois_in_order.rois(number)
    rois_in_order.check_order(rois, rois_in_order.order_of(rois))


def test_order_of_equal_rois_is_that_of_their_indices() -> None:
    rois = torch.tensor([[0, NAN, 1, NAN, 20], [1, 5, 5, 50, 50]]).repeat_interleave(40, 0)
    assert torch.equal(rois_in_order.order_of(rois), torch.arange(80, dtype=torch.int32))


@pytest.mark.parametrize("number", [1, 4, 23])
def test_levels_images_and_unusable_rois_in_one_program(number: int) -> None:
    case = Case(rois=mixed(number), scales=SCALES, output_size=(7, 3), channels=6)
    result = together(case)
    assert_error_rule(result, case.torchvision(torch.float64)[0], case.plain()[0], torch.float32)
    unusable = ~torch.isfinite(case.rois).all(1) | (case.rois[:, 0] < 0) | (case.rois[:, 0] > 1)
    assert not result[unusable].any()


@pytest.mark.parametrize(
    "options",
    [
        {"sampling_ratio": 1, "output_size": (1, 32)},
        {"sampling_ratio": 4, "output_size": (8, 8), "rois": ROIS[:6]},  # a bit for each of 32 samples
        {"sampling_ratio": 3, "output_size": (5, 2), "aligned": True},
        {"output_size": (2, 7), "channels": 37},  # more than a block
        {"output_size": (4, 4), "channels": 2},
        {
            "rois": torch.tensor([[0, 30.0, 25, 10, 5], [1, 8, 30, 25, 10], [0, 8, 4, 21, 20]]),
            "aligned": True,
        },  # backwards
        {"rois": torch.tensor([[0, 8.0, 8, 8.1, 40], [1, -4e3, -4e3, 4e3, 5e3], [1, 0, -900, 60, 900]])},
    ],
    ids=lambda options: "-".join(options),
)
def test_sampling(options: dict[str, Any]) -> None:
    case = Case(**options)
    assert_error_rule(together(case), case.torchvision(torch.float64)[0], case.plain()[0], torch.float32)


def test_what_is_not_finite_stays_with_the_rois_that_read_it() -> None:
    """RoIs that torchvision makes finite are as if it were not there, be their neighbours what they are."""
    case = Case(rois=mixed(23), channels=3, output_size=(7, 7))
    clean = together(case)
    (feature,) = case.features
    feature[0, 1, 5, 6], feature[1, 0, 0, 0], feature[1, 2, 11, 14], feature[0, 2, 0, 9] = NAN, NAN, INF, -INF
    result, finite = together(case), torch.isfinite(case.torchvision(torch.float32)[0])
    assert torch.equal(result[finite], clean[finite])
    case.features = [torch.isfinite(feature).logical_not().float()]
    weighted = case.torchvision(torch.float64)[0] > 1e-6
    assert weighted.flatten(2).any(2).any(0).all()  # in each channel
    assert not torch.isfinite(result[weighted]).any()


def test_addresses_of_large_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a map has more values than 32 bits count."""
    case = Case(rois=mixed(9), scales=SCALES)
    expected = together(case)
    wide = partial(_wide, module.roi_align_neighbours)
    monkeypatch.setattr(module, "roi_align_neighbours", wide)
    assert torch.equal(module.roi_align(case.features, case.rois, *case.arguments), expected)


def _wide(roi_align_neighbours: Any, *arguments: Any) -> None:
    *others, wide = arguments
    assert not wide
    roi_align_neighbours(*others, True)

"""RoIAlign of overlapping RoIs together, as compiled code."""

from typing import Any

import pytest
import rois_in_order
import torch
from error_rule import assert_error_rule
from rois_to_align import ROIS, Case
from torch import Tensor

from bench.virtual_gpu import Options, unwritten
from bench.virtual_gpu.intercept import active
from kernels.gpu import roi_align as module

pytestmark = pytest.mark.compiled

NAN, INF = float("nan"), float("inf")
ZEROS = torch.tensor([[0, NAN, 1, 20, 20], [-1, 1, 1, 20, 20], [2, 1, 1, 20, 20], [1, 1, -INF, 9, INF]])


def case(**options: Any) -> Case:
    """RoIs of all levels and both images, some to give zeros; not as many as programs of four have room for."""
    rois = torch.cat([ROIS, ZEROS]).repeat(4, 1)[:45]
    rois[:, 1:] += torch.arange(45)[:, None] // 12 * 1.37
    return Case(rois=rois, **{"scales": (0.25, 0.125, 0.0625), "output_size": (7, 7), "channels": 36, **options})


def pooled(case: Case, **options: Any) -> Tensor:
    """By compiled kernels, whose every access is checked."""
    with active(**options) as record:
        result = module.roi_align(case.features, case.rois, *case.arguments)
    assert record.launches[-1].resources.local == 0
    return result


@pytest.mark.parametrize("number", [1, 32, 33, 1000])
def test_order(number: int) -> None:
    rois = rois_in_order.rois(number)
    with active() as record:
        order = rois_in_order.order_of(rois)
    assert [launch.kernel for launch in record.launches] == ["_order_kernel"]
    rois_in_order.check_order(rois, order)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"aligned": True, "output_size": (5, 8), "sampling_ratio": 4},
        {"output_size": (3, 32), "sampling_ratio": 1, "channels": 5},
        {"output_size": (1, 2), "sampling_ratio": 3, "scales": (0.25,)},
    ],
    ids=lambda options: "-".join(options) or "box head",
)
def test_results(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of torchvision, and of each RoI alone to the bit, whatever the order of warps."""
    asked = case(**options)
    result = pooled(asked)
    assert not bool(unwritten(result).any())
    assert_error_rule(result, asked.torchvision(torch.float64)[0], asked.plain()[0], torch.float32)
    assert result.equal(pooled(asked, options=Options(reverse=True, quantum=1)))
    monkeypatch.setattr(module, "suits_neighbours", lambda *_: False)
    assert result.equal(pooled(asked))


def test_addresses_of_large_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = case()
    expected = pooled(asked)
    roi_align_neighbours = module.roi_align_neighbours
    monkeypatch.setattr(module, "roi_align_neighbours", lambda *given: roi_align_neighbours(*given[:-1], True))
    assert pooled(asked).equal(expected)


def test_what_is_not_finite_stays_with_the_rois_that_read_it() -> None:
    asked = case(scales=(0.25,), channels=3)
    clean = pooled(asked)
    (feature,) = asked.features
    feature[0, 1, 5, 6], feature[1, 0, 0, 0], feature[1, 2, 11, 14] = NAN, NAN, INF
    result, finite = pooled(asked), torch.isfinite(asked.torchvision(torch.float32)[0])
    assert result[finite].equal(clean[finite])
    assert not bool(torch.isfinite(result).flatten(2).all(2).all(0).any())  # something in each channel

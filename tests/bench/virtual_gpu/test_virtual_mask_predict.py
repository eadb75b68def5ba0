"""The kernels for mask logits of the wanted class, compiled and run on the virtual GPU."""

import pytest
import torch
from mask_predictions import FORMS, make, with_absent

import kernels
from bench.virtual_gpu import Options, unwritten
from bench.virtual_gpu.intercept import active

pytestmark = pytest.mark.compiled


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_mask_predict_loss(dtype: torch.dtype, form: str) -> None:
    case, used = with_absent(make(dtype, form, channels=24, size=14))
    with kernels.use("triton"), active() as record:
        seen = case.ours()
    truth, plain = (case.rows(used).truth(precision) for precision in (torch.float64, torch.float32))
    assert not bool(unwritten(seen[1]).any())
    assert not bool(seen[1][[1, 3]].any())
    case.check([seen[0], seen[1][used], *seen[2:]], truth, plain)
    launches = record.launches[:4]  # then losses of parts
    names = [launch.kernel for launch in launches]
    assert names == ["_logits_kernel", "_loss_kernel", "_class_gradient_kernel", "_class_sum_kernel"]
    features = case.features.numel() * case.features.element_size()
    logits, _, gradient, _ = (launch.counters for launch in launches)
    assert logits.dram_bytes < 1.5 * features  # read once; of 7 RoIs the rest is no small part
    assert gradient.dram_bytes < 2.5 * features  # read once, written once


@pytest.mark.parametrize("form", FORMS)
def test_mask_predict(form: str) -> None:
    case, grad = make(form=form, channels=24, size=14), torch.ones(7, 14, 14)
    for options in (Options(), Options(rounding="low"), Options(rounding="high", reverse=True)):
        with kernels.use("triton"), active(options=options):
            seen = case.ours_predicted(grad)
        truth, plain = (case.truth_predicted(grad, precision) for precision in (torch.float64, torch.float32))
        case.check(seen, truth, plain)
        assert not any(bool(unwritten(each).any()) for each in seen)


@pytest.mark.parametrize("form", FORMS)
def test_every_configuration(form: str) -> None:
    case = make(form=form, channels=70, size=14, rois=3)
    truth, plain = case.truth(torch.float64), case.truth(torch.float32)
    number, most = 0, 1
    while number < most:

        def choose(_: str, configs: list, number: int = number) -> object:
            nonlocal most
            most = max(most, len(configs))
            return configs[min(number, len(configs) - 1)]

        with kernels.use("triton"), active(choose=choose):  # type: ignore[arg-type]
            case.check(case.ours(), truth, plain)
        number += 1
    assert number > 2

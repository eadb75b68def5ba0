"""The kernels for mask logits of the wanted class, interpreted, against a convolution for all classes in float64."""

from dataclasses import replace

import pytest
import torch
from mask_predictions import FORMS, Case, make, with_absent

from kernels import mask_predict, mask_predict_loss, use
from kernels.gpu.mask_predict import mask_predict as launch_mask_predict
from kernels.gpu.mask_predict import mask_predict_backward

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]


def check_all(case: Case) -> None:
    grad = torch.randn(case.result_shape(), generator=torch.Generator().manual_seed(1))
    case.check(case.ours(), case.truth(torch.float64), case.truth(torch.float32))
    predicted, rounded = (case.truth_predicted(grad, precision) for precision in (torch.float64, torch.float32))
    case.check(case.ours_predicted(grad), predicted, rounded)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_error_rule(dtype: torch.dtype, form: str) -> None:
    case = make(dtype, form)
    check_all(case)
    assert case.ours()[1].stride() == case.features.stride()


@pytest.mark.parametrize("form", FORMS)
def test_float64_agrees_with_the_reference(form: str) -> None:
    case, grad = make(torch.float64, form), torch.randn((7, 8, 8), generator=torch.Generator().manual_seed(1)).double()
    with use("reference"):
        plain = case.ours(), case.ours_predicted(grad)
    case.check(case.ours(), case.truth(torch.float64), plain[0])
    case.check(case.ours_predicted(grad), case.truth_predicted(grad, torch.float64), plain[1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("channels", "size"), [(1, 2), (3, 6), (130, 6), (64, 14), (8, 28)])
def test_around_the_size_of_a_tile(channels: int, size: int, form: str) -> None:
    check_all(make(form=form, channels=channels, size=size, rois=3))


def test_more_rois_than_are_summed_at_a_time() -> None:
    check_all(make(form="blocked", channels=5, size=2, rois=75, classes=3))


def test_weights_of_another_dtype() -> None:
    check_all(make(torch.bfloat16, "blocked", weight_dtype=torch.float32))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [1, 4])
def test_rois_without_weight_may_hold_anything(classes: int, form: str) -> None:
    case, used = with_absent(make(form=form, classes=classes))
    loss, of_features, *of_parameters = case.ours()
    assert not of_features[[1, 3]].any()
    truth, plain = (case.rows(used).truth(precision) for precision in (torch.float64, torch.float32))
    case.check([loss, of_features[used], *of_parameters], truth, plain)


def test_a_label_that_is_no_class() -> None:
    """Of the launchers, as on a GPU: NaN, no gradient, and nothing outside is read."""
    case = replace(make(), labels=torch.tensor([0, 4, 1, -1, 2, 2**40, 3]))
    seen = launch_mask_predict(case.features, case.weight, case.bias, case.labels)
    assert seen.isnan().all(dim=(1, 2)).tolist() == [False, True, False, True, False, True, False]
    grads = mask_predict_backward(torch.ones_like(seen), case.features, case.weight, case.bias, case.labels)
    assert not grads[0][[1, 3, 5]].any()
    assert grads[2].tolist() == [64.0] * 4


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_count_is_zero(form: str) -> None:
    case = make(form=form)
    for some in (replace(case, weights=torch.zeros(7)), case.rows(torch.arange(0))):
        loss, *grads = some.ours()
        assert not loss.any()
        assert [grad.shape for grad in grads] == [each.shape for each in (some.features, some.weight, some.bias)]
        assert not any(grad.any() for grad in grads)
    assert case.rows(torch.arange(0)).ours_predicted(torch.zeros(0, 8, 8))[0].shape == (0, 8, 8)


def test_views_as_arguments() -> None:
    case = make(channels=6)
    wide = make(channels=12, classes=8)
    viewed = replace(
        case,
        features=wide.features[:, ::2],
        weight=wide.weight[::2, 1::2],
        bias=wide.bias[::2],
        labels=torch.stack([case.labels, case.labels], dim=1)[:, 0],
    )
    copied = replace(
        viewed,
        features=viewed.features.contiguous(memory_format=torch.channels_last),
        weight=viewed.weight.contiguous(),
        bias=viewed.bias.contiguous(),
        labels=case.labels,
    )
    for ours, same in zip(viewed.ours(), copied.ours(), strict=True):
        assert torch.equal(ours, same)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form: str) -> None:
    case = make(torch.float64, form, channels=2, size=2, rois=3, classes=2, sampling_ratio=1)
    leaves = [each.requires_grad_() for each in (case.features, case.weight, case.bias)]
    rest = (case.labels, case.boxes, case.gt_masks, case.gt_index, torch.tensor([1.0, 0, 2]), 1)
    assert torch.autograd.gradcheck(lambda *x: mask_predict_loss(*x, *rest), leaves, fast_mode=True)
    assert torch.autograd.gradcheck(lambda *x: mask_predict(*x, case.labels), leaves, fast_mode=True)

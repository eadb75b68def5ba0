"""The kernels for mask logits of the wanted class, interpreted, against a convolution for all classes in float64."""

from dataclasses import replace
from functools import partial

import mask_predictions
import pytest
import torch
from mask_predictions import FORMS, Case, with_absent
from polygons_to_draw import pycocotools

from kernels import (
    mask_predict,
    mask_predict_loss,
    mask_predict_loss_with_counts,
    pack_masks,
    polygons_from_coco,
    use,
)
from kernels.gpu.mask_predict import mask_predict as launch_mask_predict
from kernels.gpu.mask_predict import mask_predict_backward

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]


# Few cells of one sample, which take the interpreter little: how masks are sampled is a matter of `mask_loss`.
make = partial(mask_predictions.make, rois=5, size=4, sampling_ratio=1)


def check_loss(case: Case) -> None:
    case.check(case.ours(), case.truth(torch.float64), case.truth(torch.float32))


def check_predicted(case: Case) -> None:
    grad = torch.randn(case.result_shape(), generator=torch.Generator().manual_seed(1))
    truth, rounded = (case.truth_predicted(grad, precision) for precision in (torch.float64, torch.float32))
    case.check(case.ours_predicted(grad), truth, rounded)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_error_rule(dtype: torch.dtype, form: str) -> None:
    case = make(dtype, form)
    check_predicted(case)


@pytest.mark.parametrize("form", FORMS)
def test_error_rule_of_the_loss(form: str) -> None:
    """In float32, as are the logits of half precision; see also `test_weights_of_another_dtype`."""
    case = make(form=form)
    check_loss(case)
    assert case.ours()[1].stride() == case.features.stride()


def test_adaptive_sampling() -> None:
    check_loss(make(sampling_ratio=-1))


def test_other_forms_of_masks_and_counts() -> None:
    """The same bits as of the masks that pycocotools makes, for which the counts are the reference's."""
    case = make()
    instances = [
        [[3.3, 2.2, 30.1, 4.7, 12.9, 18.8]],
        [[0.0, 0, 25, 3, 9, 24], [20.0, 9, 33, 9, 33, 25]],
        [[5.5, 2, 31, 9, 9, 20]],
    ]
    drawn = pycocotools(instances, 25, 33)
    leaves, head = (case.features, case.weight, case.bias), (case.labels, case.boxes)
    tail = (case.gt_index, torch.tensor([1.0, 0, 2, 1, 1]), 1)
    with use("reference"):
        _, expected = mask_predict_loss_with_counts(*leaves, *head, drawn, *tail)
    plain = mask_predict_loss(*leaves, *head, drawn, *tail)
    assert plain > 0
    for masks in (drawn, pack_masks(drawn), polygons_from_coco(instances, 25, 33)):
        loss, counts = mask_predict_loss_with_counts(*leaves, *head, masks, *tail)
        assert loss.equal(plain)
        assert torch.stack(counts).equal(torch.stack(expected))


@pytest.mark.parametrize("form", FORMS)
def test_float64_agrees_with_the_reference(form: str) -> None:
    case, grad = make(torch.float64, form), torch.randn((5, 4, 4), generator=torch.Generator().manual_seed(1)).double()
    with use("reference"):
        plain = case.ours_predicted(grad)
    case.check(case.ours_predicted(grad), case.truth_predicted(grad, torch.float64), plain)


def test_the_loss_in_float64_agrees_with_the_reference() -> None:
    case = make(torch.float64)
    with use("reference"):
        plain = case.ours()
    case.check(case.ours(), case.truth(torch.float64), plain)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("channels", "size"), [(1, 2), (3, 6), (130, 6), (64, 14), (8, 28)])
def test_around_the_size_of_a_tile(channels: int, size: int, form: str) -> None:
    check_predicted(make(form=form, channels=channels, size=size, rois=2))


def test_more_rois_than_are_summed_at_a_time() -> None:
    check_predicted(make(form="blocked", channels=5, size=2, rois=70, classes=3))


def test_weights_of_another_dtype() -> None:
    case = make(torch.bfloat16, "blocked", weight_dtype=torch.float32)
    check_loss(case)
    check_predicted(case)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [1, 4])
def test_rois_without_weight_may_hold_anything(classes: int, form: str) -> None:
    case, used = with_absent(make(form=form, classes=classes))
    loss, of_features, *of_parameters = case.ours()
    assert not of_features[[1, 3]].any()
    truth, plain = (case.rows(used).truth(precision) for precision in (torch.float64, torch.float32))
    case.check([loss, of_features[used], *of_parameters], truth, plain)


def test_a_label_that_is_no_class() -> None:
    """Of the launchers, as on a GPU: zeros, no gradient, and nothing outside is read."""
    case = replace(make(rois=7, size=8), labels=torch.tensor([0, 4, 1, -1, 2, 2**40, 3]))
    seen = launch_mask_predict(case.features, case.weight, case.bias, case.labels)
    assert (seen == 0).all(dim=(1, 2)).tolist() == [False, True, False, True, False, True, False]
    grads = mask_predict_backward(torch.ones_like(seen), case.features, case.weight, case.bias, case.labels)
    assert not grads[0][[1, 3, 5]].any()
    assert grads[2].tolist() == [64.0] * 4


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_count_is_zero(form: str) -> None:
    case = make(form=form)
    for some in (replace(case, weights=torch.zeros(5)), case.rows(torch.arange(0))):
        loss, *grads = some.ours()
        assert not loss.any()
        assert [grad.shape for grad in grads] == [each.shape for each in (some.features, some.weight, some.bias)]
        assert not any(grad.any() for grad in grads)
    assert case.rows(torch.arange(0)).ours_predicted(torch.zeros(0, 4, 4))[0].shape == (0, 4, 4)


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
    case = make(torch.float64, form, channels=2, size=2, rois=3, classes=2)
    leaves = [each.requires_grad_() for each in (case.features, case.weight, case.bias)]
    assert torch.autograd.gradcheck(lambda *x: mask_predict(*x, case.labels), leaves, fast_mode=True)


def test_gradcheck_of_the_loss() -> None:
    case = make(torch.float64, channels=2, size=2, rois=3, classes=2)
    leaves = [each.requires_grad_() for each in (case.features, case.weight, case.bias)]
    rest = (case.labels, case.boxes, case.gt_masks, case.gt_index, torch.tensor([1.0, 0, 2]), 1)
    assert torch.autograd.gradcheck(lambda *x: mask_predict_loss(*x, *rest), leaves, fast_mode=True)

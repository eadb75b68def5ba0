"""Mask logits of the wanted class, eager and reference, against a convolution for all classes in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from mask_predictions import FORMS, make, with_absent
from polygons_to_draw import pycocotools, some_instances
from torch import Tensor

from kernels import (
    PackedMasks,
    Polygons,
    mask_loss,
    mask_predict,
    mask_predict_loss,
    mask_predict_loss_with_counts,
    pack_masks,
    polygons_from_coco,
    use,
)
from kernels.dispatch import Implementation

IMPLEMENTATIONS: list[Implementation] = ["eager", "reference"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_error_rule(implementation: Implementation, dtype: torch.dtype, form: str) -> None:
    case = make(dtype, form)
    with use(implementation):
        seen = case.ours()
    case.check(seen, case.truth(torch.float64), case.truth(torch.float32))
    assert seen[1].stride() == case.features.stride()
    grad = torch.randn((7, 8, 8), generator=torch.Generator().manual_seed(1))
    with use(implementation):
        seen = case.ours_predicted(grad)
    case.check(seen, case.truth_predicted(grad, torch.float64), case.truth_predicted(grad, torch.float32))
    assert seen[0].shape == (7, 8, 8)


@pytest.mark.parametrize("form", FORMS)
def test_error_rule_in_float64(form: str) -> None:
    """The reference's own error to the oracle is what the rule doubles."""
    case, grad = make(torch.float64, form), torch.randn((7, 8, 8), generator=torch.Generator().manual_seed(1)).double()
    with use("reference"):
        plain = case.ours(), case.ours_predicted(grad)
    with use("eager"):
        case.check(case.ours(), case.truth(torch.float64), plain[0])
        case.check(case.ours_predicted(grad), case.truth_predicted(grad, torch.float64), plain[1])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_weights_of_another_dtype(implementation: Implementation) -> None:
    """As under autocast: features in half precision, parameters in float32."""
    case = make(torch.bfloat16, "blocked", weight_dtype=torch.float32)
    with use(implementation):
        seen = case.ours()
    assert [each.dtype for each in seen] == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
    case.check(seen, case.truth(torch.float64), case.truth(torch.float32))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rois_without_weight_may_hold_anything(implementation: Implementation, classes: int, form: str) -> None:
    case, used = with_absent(make(form=form, classes=classes))
    with use(implementation):
        loss, of_features, *of_parameters = case.ours()
    assert not of_features[[1, 3]].any()
    truth, plain = (case.rows(used).truth(precision) for precision in (torch.float64, torch.float32))
    case.check([loss, of_features[used], *of_parameters], truth, plain)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_class_is_taken_whatever_the_label(implementation: Implementation) -> None:
    case = replace(make(classes=1), labels=torch.tensor([5, 0, -3, 80, 1, 2, 0]))
    grad = torch.ones(7, 8, 8)
    with use(implementation):
        case.check(case.ours(), case.truth(torch.float64), case.truth(torch.float32))
        seen = case.ours_predicted(grad)
    case.check(seen, case.truth_predicted(grad, torch.float64), case.truth_predicted(grad, torch.float32))


@pytest.mark.parametrize("sampling_ratio", [1, 2])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_fixed_sampling(implementation: Implementation, sampling_ratio: int) -> None:
    case = make(sampling_ratio=sampling_ratio)
    with use(implementation):
        case.check(case.ours(), case.truth(torch.float64), case.truth(torch.float32))


def test_blocks_go_to_their_places() -> None:
    """By hand: feature (row, column, row in block, column in block) is a number of four digits."""
    digits = torch.arange(2.0)
    features = (digits.view(2, 1, 1, 1) * 10 + digits.view(2, 1, 1) + digits.view(2, 1) / 10 + digits / 100)[
        None, ..., None
    ]
    logits = mask_predict(features, torch.ones(1, 1), torch.zeros(1), torch.tensor([0])).logit()
    expected = [[0, 0.01, 1, 1.01], [0.1, 0.11, 1.1, 1.11], [10, 10.01, 11, 11.01], [10.1, 10.11, 11.1, 11.11]]
    assert torch.allclose(logits[0], torch.tensor(expected), rtol=1e-2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_loss_is_that_of_the_logits(implementation: Implementation) -> None:
    case = make()
    with use(implementation):
        loss = case.ours()[0][0]
        logits = mask_predict(case.features, case.weight, case.bias, case.labels).double().logit()[:, None]
        by_parts = mask_loss(logits, case.labels * 0, case.boxes, case.gt_masks, case.gt_index, case.weights)
    assert torch.allclose(loss.double(), by_parts, rtol=1e-6)


@pytest.mark.parametrize("sampling_ratio", [-1, 2])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_other_forms_of_masks(implementation: Implementation, sampling_ratio: int) -> None:
    """The loss and gradients of the masks that pycocotools makes, which a convolution and torchvision judge."""
    instances = some_instances(3, 25, 33, seed=3)
    case = replace(make(sampling_ratio=sampling_ratio), gt_masks=pycocotools(instances, 25, 33))
    forms: list[PackedMasks | Polygons] = [pack_masks(case.gt_masks), polygons_from_coco(instances, 25, 33)]
    with use(implementation):
        plain = case.ours()
        case.check(plain, case.truth(torch.float64), case.truth(torch.float32))
        for form in forms:
            seen = replace(case, gt_masks=form).ours()  # type: ignore[arg-type]
            assert all(each.equal(same) for each, same in zip(seen, plain, strict=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_counts(implementation: Implementation) -> None:
    """Of the RoIs that have weight, against a convolution for all classes and torchvision's targets."""
    case, used = with_absent(make(sampling_ratio=3))
    arguments = (case.labels, case.boxes, case.gt_masks, case.gt_index, case.weights, 3)
    leaves = [each.requires_grad_() for each in (case.features.clone(), case.weight.clone(), case.bias.clone())]
    with use(implementation):
        loss, counts = mask_predict_loss_with_counts(*leaves, *arguments)
        assert loss.equal(mask_predict_loss(*leaves, *arguments))
    some = case.rows(used)
    rois = torch.cat([some.gt_index[:, None], some.boxes], dim=1).double()
    target = torchvision.ops.roi_align(case.gt_masks[:, None].double(), rois, (8, 8), 1.0, 3)[:, 0]
    of_all = torch.nn.functional.conv2d(
        some.features.double(), case.weight[..., None, None].double(), case.bias.double()
    )
    logits = of_all[torch.arange(len(used)), some.labels]
    assert min((target - 0.5).abs().min(), logits.abs().min()) > 1e-5  # rounding decides nothing
    truth, said = target >= 0.5, logits > 0
    expected: list[Tensor] = [torch.ones_like(truth), truth, said & ~truth, truth & ~said]
    assert [each.item() for each in counts] == [each.sum().item() for each in expected]
    assert not any(each.requires_grad for each in counts)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_to_count_is_zero(implementation: Implementation, form: str) -> None:
    case = make(form=form)
    none = torch.arange(0)
    for some in (
        replace(case, weights=torch.zeros(7)),
        case.rows(none),
        replace(case.rows(none), gt_masks=case.gt_masks[:0]),
    ):
        with use(implementation):
            loss, *grads = some.ours()
        assert not loss.any()
        assert [grad.shape for grad in grads] == [each.shape for each in (some.features, some.weight, some.bias)]
        assert not any(grad.any() for grad in grads)
    with use(implementation):
        empty = case.rows(none)
        assert empty.ours_predicted(torch.zeros(0, 8, 8))[0].shape == (0, 8, 8)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_features_of_any_strides(implementation: Implementation) -> None:
    case = make(channels=6)
    wide = make(channels=12).features
    with use(implementation):
        strided = replace(case, features=wide[:, ::2]).ours()
        copied = replace(case, features=wide[:, ::2].contiguous(memory_format=torch.channels_last)).ours()
    for ours, same in zip(strided, copied, strict=True):
        assert torch.equal(ours, same)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradcheck(implementation: Implementation, form: str) -> None:
    case = make(torch.float64, form, channels=2, size=2, rois=3, classes=2)
    leaves = [each.requires_grad_() for each in (case.features, case.weight, case.bias)]
    rest = (case.labels, case.boxes, case.gt_masks, case.gt_index, torch.tensor([1.0, 0, 2]))
    with use(implementation):
        assert torch.autograd.gradcheck(lambda *x: mask_predict_loss(*x, *rest), leaves)
        assert torch.autograd.gradcheck(lambda *x: mask_predict(*x, case.labels), leaves)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": torch.zeros(7, 19, 8, 9)}, r"features is \(7, 19, 8, 9\)"),
        ({"features": torch.zeros(7, 4, 4, 2, 3, 19)}, r"features is \(7, 4, 4, 2, 3, 19\)"),
        ({"features": torch.zeros(7, 19, 8)}, r"features is \(7, 19, 8\)"),
        ({"features": torch.zeros(7, 19, 0, 0)}, r"features is \(7, 19, 0, 0\)"),
        ({"features": torch.zeros(7, 19, 8, 8, dtype=torch.int32)}, "features is .* torch.int32"),
        ({"weight": torch.zeros(4, 18)}, r"weight is \(4, 18\) .* must be classes x 19"),
        ({"weight": torch.zeros(4, 19, 1, 1)}, r"weight is \(4, 19, 1, 1\)"),
        ({"weight": torch.zeros(4, 19, device="meta")}, "weight is on meta"),
        ({"bias": torch.zeros(3)}, r"bias is \(3,\)"),
        ({"labels": torch.zeros(7)}, "labels is .* torch.float32"),
        ({"labels": torch.full((7,), 4)}, "labels holds 4; it must be from 0 to 3"),
        ({"labels": torch.full((7,), -1)}, "labels holds -1"),
        ({"boxes": torch.zeros(7, 5)}, r"boxes is \(7, 5\)"),
        ({"gt_masks": torch.zeros(3, 25, 33)}, "gt_masks is .* torch.float32"),
        ({"gt_masks": PackedMasks(torch.zeros(3, 25, 1, dtype=torch.int32), 33)}, r"gt_masks.bits is \(3, 25, 1\)"),
        ({"gt_masks": polygons_from_coco([[]], 25, 33)._replace(width=-1)}, "gt_masks.width is -1"),
        ({"gt_masks": torch.zeros(3, 25, 33, dtype=torch.uint8, device="meta")}, "gt_masks is on meta"),
        ({"gt_index": torch.zeros(6, dtype=torch.int64)}, r"gt_index is \(6,\)"),
        ({"gt_index": torch.full((7,), 3)}, "gt_index holds 3; it must be from 0 to 2"),
        ({"weights": torch.ones(7, dtype=torch.int64)}, "weights is .* torch.int64"),
        ({"boxes": torch.zeros(7, 4, device="meta")}, "boxes is on meta"),
    ],
)
def test_wrong_arguments(changed: dict[str, Any], message: str) -> None:
    case = make()
    names = ("features", "weight", "bias", "labels", "boxes", "gt_masks", "gt_index", "weights")
    arguments = {name: getattr(case, name) for name in names} | changed
    with use("eager"), pytest.raises(ValueError, match=message):
        mask_predict_loss(**arguments)
    if changed.keys() <= {"features", "weight", "bias", "labels"}:
        with use("eager"), pytest.raises(ValueError, match=message):
            mask_predict(*[arguments[name] for name in names[:4]])

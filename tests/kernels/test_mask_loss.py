"""The mask loss, eager and reference, against torchvision's `maskrcnn_loss` in float64."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torchvision
from error_rule import assert_error_rule
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models.detection.roi_heads import maskrcnn_loss

from kernels import mask_loss, mask_loss_with_counts, use
from kernels.dispatch import Implementation
from kernels.reference.mask_loss import mask_loss as reference_mask_loss
from kernels.reference.mask_loss import mask_loss_backward as reference_mask_loss_backward

IMPLEMENTATIONS: list[Implementation] = ["eager", "reference"]
FORMATS = [torch.contiguous_format, torch.channels_last]
NAN = float("nan")

# In a mask of 25 x 33: inside, across the border, degenerate, far outside, whole, thin.
BOXES = torch.tensor(
    [
        [3.2, 4.1, 20.3, 17.7],
        [-10.2, -6.1, 12.4, 40.3],
        [7.7, 8.8, 7.7, 8.8],
        [400.1, 300.2, 450.3, 380.4],
        [0.0, 0.0, 33.0, 25.0],
        [5.1, 3.2, 5.4, 22.9],
    ]
)


@dataclass(frozen=True)
class Case:
    logits: Tensor
    labels: Tensor
    boxes: Tensor
    gt_masks: Tensor
    gt_index: Tensor

    def rows(self, index: Tensor) -> "Case":
        """The same with RoIs chosen, left out or repeated."""
        return replace(
            self,
            logits=self.logits[index],
            labels=self.labels[index],
            boxes=self.boxes[index],
            gt_index=self.gt_index[index],
        )


def make(
    dtype: torch.dtype = torch.float32,
    channels: int = 3,
    memory_format: torch.memory_format = torch.contiguous_format,
    boxes: Tensor = BOXES,
    size: int = 7,
) -> Case:
    generator = torch.Generator().manual_seed(0)
    number = len(boxes)
    logits = 3 * torch.randn((number, channels, size, size), generator=generator)
    return Case(
        logits=logits.to(dtype).contiguous(memory_format=memory_format),
        labels=torch.randint(0, channels, (number,), generator=generator),
        boxes=boxes.to(torch.promote_types(dtype, torch.float32), copy=True),
        gt_masks=torch.rand((3, 25, 33), generator=generator) > 0.4,
        gt_index=torch.randint(0, 3, (number,), generator=generator),
    )


def ours(case: Case, implementation: Implementation, **options: Any) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by the logits."""
    leaf = case.logits.detach().requires_grad_()
    with use(implementation):
        loss = mask_loss(leaf, case.labels, case.boxes, case.gt_masks, case.gt_index, **options)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def torchvisions(case: Case, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same by torchvision, which knows no weights and samples adaptively."""
    leaf = case.logits.detach().to(precision).contiguous().requires_grad_()
    # Its labels are those of the ground truth: one mask for each RoI, in order.
    masks, order = case.gt_masks[case.gt_index].to(torch.uint8), torch.arange(len(case.labels))
    loss = maskrcnn_loss(leaf, [case.boxes.to(precision)], [masks], [case.labels], [order])
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def check(case: Case, results: tuple[Tensor, Tensor], oracle: Any = torchvisions) -> None:
    """The loss is float32 whatever the logits' dtype, and its gradient has that dtype."""
    dtype = case.logits.dtype
    (loss, grad), (true_loss, true_grad), (plain_loss, plain_grad) = (
        results,
        oracle(case, torch.float64),
        oracle(case, torch.float32),
    )
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    assert_error_rule(loss, true_loss, plain_loss, torch.float32)
    assert_error_rule(grad, true_grad, plain_grad.to(dtype), dtype)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_error_rule(
    implementation: Implementation, channels: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    case = make(dtype, channels, memory_format)
    loss, grad = ours(case, implementation)
    check(case, (loss, grad))
    assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("box", BOXES, ids=lambda box: str(box.tolist()))
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_box(implementation: Implementation, box: Tensor) -> None:
    case = make(boxes=box[None])
    check(case, ours(case, implementation))


def test_error_rule_in_float64() -> None:
    """What the rule doubles is the reference's error, so there must be many numbers."""
    case = make(torch.float64, boxes=BOXES.repeat(4, 1) + torch.arange(24)[:, None] * 0.37, size=14)
    arguments = (case.labels, case.boxes, case.gt_masks, case.gt_index, torch.ones(24), -1)
    plain_loss, residual = reference_mask_loss(case.logits, *arguments)
    plain_grad = reference_mask_loss_backward(torch.ones(()), residual, case.labels, 3, torch.float64, False)
    loss, grad = ours(case, "eager")
    true_loss, true_grad = torchvisions(case, torch.float64)
    assert_error_rule(loss, true_loss, plain_loss, torch.float64)
    assert_error_rule(grad, true_grad, plain_grad, torch.float64)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_whole_weights_count_a_roi_as_often(implementation: Implementation) -> None:
    case = make()
    weights = torch.tensor([2.0, 1, 0, 3, 0, 1])
    loss, grad = ours(case, implementation, weights=weights)
    repeated = torch.arange(6).repeat_interleave(weights.long())

    def of_repeated(case: Case, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        loss, grad = torchvisions(case.rows(repeated), precision)
        return loss, torch.zeros(case.logits.shape, dtype=precision).index_add(0, repeated, grad)

    check(case, (loss, grad), of_repeated)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rois_without_weight_may_hold_anything(implementation: Implementation, channels: int) -> None:
    case, used = make(channels=channels), torch.tensor([0, 2, 4, 5])
    weights = torch.tensor([1.0, 0, 1, 0, 1, 1])
    case.labels[1], case.labels[3] = 999, -999
    case.gt_index[1], case.gt_index[3] = -77, 77
    case.boxes[1], case.boxes[3] = NAN, float("inf")
    case.logits[1], case.logits[3] = NAN, float("-inf")
    loss, grad = ours(case, implementation, weights=weights)
    assert not grad[[1, 3]].any()
    check(case.rows(used), (loss, grad[used]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_channel_is_judged_whatever_the_label(implementation: Implementation) -> None:
    case = make(channels=1)
    result = ours(replace(case, labels=torch.tensor([5, 0, -3, 80, 1, 2])), implementation)
    check(case, result)


@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_fixed_sampling(implementation: Implementation, sampling_ratio: int) -> None:
    def oracle(case: Case, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf = case.logits.to(precision).requires_grad_()
        rois = torch.cat([case.gt_index[:, None], case.boxes], 1).to(precision)
        masks = case.gt_masks[:, None].to(precision)
        targets = torchvision.ops.roi_align(masks, rois, (7, 7), 1.0, sampling_ratio)[:, 0]
        loss = binary_cross_entropy_with_logits(leaf[torch.arange(6), case.labels], targets)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    case = make()
    check(case, ours(case, implementation, sampling_ratio=sampling_ratio), oracle)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bytes_and_strided_masks_are_sampled_as_booleans_are(implementation: Implementation) -> None:
    case = make()
    expected = ours(case, implementation)
    strided = torch.zeros((33, 25, 6), dtype=torch.uint8).permute(2, 1, 0)[::2]
    for masks in (case.gt_masks.to(torch.uint8), strided.copy_(case.gt_masks)):
        for result, same in zip(ours(replace(case, gt_masks=masks), implementation), expected, strict=True):
            assert torch.equal(result, same)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_logits_of_any_strides(implementation: Implementation) -> None:
    case = make(channels=6)
    every_other = replace(case, logits=case.logits[:, ::2].contiguous(), labels=case.labels // 2)
    strided = ours(replace(every_other, logits=case.logits[:, ::2]), implementation)
    for result, same in zip(strided, ours(every_other, implementation), strict=True):
        assert torch.equal(result, same)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_to_count_is_zero(implementation: Implementation) -> None:
    case = make()
    for some, weights in ((case, torch.zeros(6)), (case.rows(torch.arange(0)), None)):
        loss, grad = ours(some, implementation, weights=weights)
        assert loss.item() == 0
        assert grad.shape == some.logits.shape
        assert not grad.any()
    no_masks = replace(case, gt_masks=case.gt_masks[:0])  # an image without objects
    assert ours(no_masks, implementation, weights=torch.zeros(6))[0].item() == 0


def test_a_box_that_is_not_finite_has_an_empty_target() -> None:
    case = make(boxes=torch.tensor([[NAN, 1, 9, 9], [1, 1, float("inf"), 9], [-3e38, 1, 3e38, 9]]))
    outside = replace(case, boxes=torch.tensor([[900.0, 900, 910, 910]] * 3))
    assert torch.equal(ours(case, "eager")[1], ours(outside, "eager")[1])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_confident_logits_keep_their_small_loss(implementation: Implementation) -> None:
    """exp(-20) added to 1 in float32 is 1; the loss of a right and confident cell is still not 0."""
    case = make(boxes=BOXES[[0, 4]])
    case = replace(case, logits=torch.full_like(case.logits, 20.0), gt_masks=torch.ones_like(case.gt_masks))
    loss, grad = ours(case, implementation)
    assert 0 < loss.item() < 1e-8
    check(case, (loss, grad))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_counts(implementation: Implementation) -> None:
    """As Detectron2 logs them, of the RoIs that have weight."""
    case, used = make(), torch.tensor([0, 1, 2, 4])
    arguments = (case.labels, case.boxes, case.gt_masks, case.gt_index)
    weights = torch.tensor([1.0, 2, 0.5, 0, 1, 0])
    with use(implementation):
        loss, counts = mask_loss_with_counts(case.logits, *arguments, weights)
        assert loss.equal(mask_loss(case.logits, *arguments, weights))
        _, none = mask_loss_with_counts(case.logits, *arguments, 0 * weights)
    rois = torch.cat([case.gt_index[used, None], case.boxes[used]], 1).double()
    target = torchvision.ops.roi_align(case.gt_masks[:, None].double(), rois, (7, 7))[:, 0]
    assert (target - 0.5).abs().min() > 1e-6  # rounding decides nothing
    truth, said = target >= 0.5, case.logits[used, case.labels[used]] > 0
    wrong = truth != said
    assert [each.item() for each in counts] == [
        truth.numel(), truth.sum().item(), (wrong & said).sum().item(), (wrong & truth).sum().item()
    ]  # fmt: skip
    assert counts.accuracy().item() == pytest.approx(1 - wrong.double().mean().item())
    assert counts.false_positive_rate().item() == pytest.approx((wrong & ~truth).sum().item() / (~truth).sum().item())
    assert counts.false_negative_rate().item() == pytest.approx((wrong & truth).sum().item() / truth.sum().item())
    assert [each.item() for each in none] == [0] * 4
    assert none.accuracy().item() == 1


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradcheck(implementation: Implementation, memory_format: torch.memory_format) -> None:
    case = make(torch.float64, 2, memory_format, size=3)
    rest = (case.labels, case.boxes, case.gt_masks, case.gt_index, torch.tensor([1.0, 0.5, 0, 2, 1, 0.1]))
    with use(implementation):
        assert torch.autograd.gradcheck(lambda x: mask_loss(x, *rest), case.logits.requires_grad_())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_second_derivative_is_refused(implementation: Implementation) -> None:
    """And not 0, which a penalty on the gradient would not notice."""
    case = make(torch.float32, 2)
    logits = case.logits.requires_grad_()
    with use(implementation):
        loss = mask_loss(logits, case.labels, case.boxes, case.gt_masks, case.gt_index)
        (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
        (plain,) = torch.autograd.grad(mask_loss(logits, case.labels, case.boxes, case.gt_masks, case.gt_index), logits)
        assert torch.equal(grad, plain)
        with pytest.raises(RuntimeError, match="mask_loss is differentiable once"):
            (grad**2).sum().backward()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"logits": torch.zeros(6, 3, 7, 8)}, r"logits is \(6, 3, 7, 8\)"),
        ({"logits": torch.zeros(6, 3, 7, 7, dtype=torch.int64)}, "logits is .* torch.int64"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"labels is \(5,\)"),
        ({"labels": torch.zeros(6)}, "labels is .* torch.float32"),
        ({"labels": torch.full((6,), 3)}, "labels holds 3; it must be from 0 to 2"),
        ({"labels": torch.full((6,), -1)}, "labels holds -1"),
        ({"boxes": torch.zeros(6, 5)}, r"boxes is \(6, 5\)"),
        ({"boxes": torch.zeros(6, 4, device="meta")}, "boxes is on meta"),
        ({"gt_masks": torch.zeros(3, 25, 33)}, "gt_masks is .* torch.float32"),
        ({"gt_masks": torch.zeros(3, 1, 25, 33, dtype=torch.bool)}, r"gt_masks is \(3, 1, 25, 33\)"),
        ({"gt_index": torch.zeros(6, dtype=torch.int32)}, "gt_index is .* torch.int32"),
        ({"gt_index": torch.full((6,), 3)}, "gt_index holds 3; it must be from 0 to 2"),
        ({"weights": torch.ones(5)}, r"weights is \(5,\)"),
        ({"weights": torch.ones(6, dtype=torch.int64)}, "weights is .* torch.int64"),
    ],
)
def test_wrong_arguments(changed: dict[str, Any], message: str) -> None:
    case = make()
    arguments = {
        "logits": case.logits,
        "labels": case.labels,
        "boxes": case.boxes,
        "gt_masks": case.gt_masks,
        "gt_index": case.gt_index,
    }
    with use("eager"), pytest.raises(ValueError, match=message):
        mask_loss(**{**arguments, **changed})

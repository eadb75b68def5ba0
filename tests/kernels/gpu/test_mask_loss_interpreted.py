"""The mask loss kernels, interpreted, against torchvision's RoIAlign and PyTorch's cross entropy in float64."""

from typing import Any

import pytest
import torch
import torchvision
from error_rule import assert_error_rule
from logs_to_compute import check_log1p
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from kernels.gpu.mask_loss import mask_loss, mask_loss_backward, mask_loss_with_counts
from kernels.reference.mask_loss import mask_loss as reference_mask_loss

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]


class Case:
    """Six RoIs on three masks; the second has weight 0 and nothing in it may be used."""

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        channels: int = 3,
        channels_last: bool = False,
        sampling_ratio: int = -1,
        size: int = 7,
        scale: float = 3.0,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        logits = scale * torch.randn((6, channels, size, size), generator=generator)
        self.logits = logits.to(dtype).contiguous(memory_format=memory_format)
        self.labels = torch.tensor([0, 999, 2, 1, 0, 2]) % max(channels, 1)
        self.labels[1] = 999
        corner = torch.rand((6, 2), generator=generator) * 20
        extent = torch.rand((6, 2), generator=generator) * 20
        self.boxes = torch.cat([corner, corner + extent], 1)
        self.boxes[1] = float("nan")
        self.boxes[2] = torch.tensor([-30.0, -30, 90, 70])
        self.boxes[3] = torch.tensor([5.0, 6, 5, 6])
        self.boxes[4] = torch.tensor([200.0, 200, 240, 260])
        self.masks = torch.rand((3, 25, 33), generator=generator) > 0.4
        self.index = torch.tensor([2, -7, 1, 0, 1, 2])
        self.weights = torch.tensor([1.0, 0.0, 1.0, 0.5, 1.0, 2.0])
        self.dtype, self.sampling_ratio = dtype, sampling_ratio

    def arguments(self) -> tuple[Any, ...]:
        return (
            self.logits, self.labels, self.boxes, self.masks, self.index, self.weights, self.sampling_ratio
        )  # fmt: skip

    def plain(self, precision: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, its derivative by each class's logits, and its dense gradient."""
        size, channels = self.logits.shape[-1], self.logits.shape[1]
        used = torch.nonzero(self.weights)[:, 0]
        rois = torch.cat([torch.arange(len(used))[:, None], self.boxes[used]], 1).to(precision)
        masks = self.masks[self.index[used], None].to(precision)
        target = torchvision.ops.roi_align(masks, rois, (size, size), 1.0, self.sampling_ratio, False)[:, 0]
        labels = self.labels[used] if channels > 1 else torch.zeros_like(used)
        logits = self.logits.to(precision).contiguous().requires_grad_()
        entropy = binary_cross_entropy_with_logits(logits[used, labels], target, reduction="none")
        weights = self.weights.to(precision)
        loss = (entropy.sum((1, 2)) * weights[used]).sum() / (size * size * weights.sum())
        (grad,) = torch.autograd.grad(loss, logits)
        residual = torch.zeros((6, size, size), dtype=precision)
        residual[used] = grad[used, labels]
        return loss.detach(), residual, grad

    def check(self) -> None:
        loss, residual = mask_loss(*self.arguments())
        accumulated = torch.promote_types(self.dtype, torch.float32)
        assert loss.dtype == residual.dtype == accumulated
        assert loss.shape == ()
        true_loss, true_residual, true_grad = self.plain(torch.float64)
        plain_loss, plain_residual, plain_grad = self.plain(accumulated)
        assert_error_rule(loss, true_loss, plain_loss, accumulated)
        assert_error_rule(residual, true_residual, plain_residual, accumulated)
        for channels_last in (False, True):
            grad_loss = torch.tensor(2.0, dtype=accumulated)
            grad = mask_loss_backward(grad_loss, residual, self.labels, self.logits.shape[1], self.dtype, channels_last)
            assert grad.dtype == self.dtype
            memory_format = torch.channels_last if channels_last else torch.contiguous_format
            assert grad.is_contiguous(memory_format=memory_format)
            assert_error_rule(grad, 2 * true_grad, (2 * plain_grad).to(self.dtype), self.dtype)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_agrees_with_torchvision(dtype: torch.dtype, channels_last: bool) -> None:
    Case(dtype, channels_last=channels_last).check()


def test_float64_agrees_with_the_reference() -> None:
    """The reference's own error to torchvision is what the rule doubles."""
    case = Case(torch.float64)
    truth = case.plain(torch.float64)
    for ours, true, plain in zip(
        mask_loss(*case.arguments()), truth, reference_mask_loss(*case.arguments()), strict=False
    ):
        assert_error_rule(ours, true, plain, torch.float64)


@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 5])
def test_fixed_sampling(sampling_ratio: int, channels: int) -> None:
    Case(channels=channels, sampling_ratio=sampling_ratio, size=6).check()


@pytest.mark.parametrize("size", [28, 32, 33, 40])
def test_rows_of_cells_longer_than_a_part(size: int) -> None:
    """32 cells are a part of a row; the last part may hold one."""
    Case(size=size, sampling_ratio=1).check()


def test_counts_of_rows_of_several_parts() -> None:
    case = Case(size=33, sampling_ratio=1, channels_last=True)
    *_, counts = mask_loss_with_counts(*case.arguments())
    used = torch.nonzero(case.weights)[:, 0]
    rois = torch.cat([torch.arange(len(used))[:, None], case.boxes[used]], 1)
    masks = case.masks[case.index[used], None].float()
    truth = torchvision.ops.roi_align(masks, rois, (33, 33), 1.0, 1, False)[:, 0] >= 0.5
    said = case.logits[used, case.labels[used]] > 0
    expected = [truth.numel(), truth.sum(), (said & ~truth).sum(), (truth & ~said).sum()]
    assert counts.tolist() == [int(each) for each in expected]


def test_confident_logits_keep_their_small_loss() -> None:
    """exp(-20) added to 1 in float32 is 1; the loss of a right and confident cell is still not 0."""
    case = Case(scale=0.0)
    case.masks[:] = True
    case.boxes[:] = torch.tensor([3.0, 4.0, 20.0, 22.0])
    case.logits[:] = 20.0
    assert 0 < mask_loss(*case.arguments())[0].item() < 1e-8
    case.check()


def test_bytes_are_sampled_as_booleans_are() -> None:
    case = Case()
    loss, residual = mask_loss(*case.arguments())
    case.masks = case.masks.to(torch.uint8)
    again, same_residual = mask_loss(*case.arguments())
    assert torch.equal(loss, again)
    assert torch.equal(residual, same_residual)


def test_nothing_to_count_is_zero() -> None:
    case = Case()
    case.weights.zero_()
    loss, residual = mask_loss(*case.arguments())
    assert loss.item() == 0
    assert not residual.any()
    none = [x[:0] for x in (case.logits, case.labels, case.boxes)]
    loss, residual = mask_loss(*none, case.masks, case.index[:0], case.weights[:0], -1)
    assert loss.item() == 0
    assert residual.shape == (0, 7, 7)
    assert mask_loss_backward(loss, residual, case.labels[:0], 3, torch.float32, False).shape == (0, 3, 7, 7)


def test_indices_out_of_range_do_no_harm() -> None:
    """With weight, too: such a RoI adds nothing."""
    case = Case()
    case.labels[0], case.index[2] = -1, 3
    residual = mask_loss(*case.arguments())[1]
    assert not residual[[0, 1, 2]].any()
    assert residual[[3, 5]].any()


class _MaskLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, *arguments: Any) -> Tensor:
        loss, residual = mask_loss(logits, *arguments)
        ctx.save_for_backward(residual, arguments[0])
        ctx.channels = logits.shape[1]
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        residual, labels = ctx.saved_tensors
        grad = mask_loss_backward(grad_loss, residual, labels, ctx.channels, torch.float64, False)
        return (grad, *[None] * 6)


def test_gradcheck() -> None:
    case = Case(torch.float64, size=2, sampling_ratio=1)
    logits, *rest = case.arguments()
    assert torch.autograd.gradcheck(lambda x: _MaskLoss.apply(x, *rest), logits.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_logarithm(dtype: torch.dtype) -> None:
    check_log1p(dtype)

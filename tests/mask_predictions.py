"""RoIs for `mask_predict` and `mask_predict_loss`, and an oracle that computes all classes, as torchvision does."""

from dataclasses import dataclass, replace

import torch
import torchvision
from error_rule import assert_error_rule
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d

from kernels import mask_predict, mask_predict_loss

FORMS = ["contiguous", "channels last", "blocked"]


@dataclass(frozen=True)
class Case:
    """K RoIs on masks of 25 x 33; those in `absent` have weight 0, and nothing in them may be used."""

    features: Tensor
    weight: Tensor
    bias: Tensor
    labels: Tensor
    boxes: Tensor
    gt_masks: Tensor
    gt_index: Tensor
    weights: Tensor
    sampling_ratio: int = -1

    def rows(self, index: Tensor) -> "Case":
        """The same with RoIs chosen."""
        names = ("features", "labels", "boxes", "gt_index", "weights")
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    def parts(self) -> list["Case"]:
        """Some of the RoIs, one by one: one loss is too few numbers for a rule on errors."""
        return [self.rows(index) for index in torch.nonzero(self.weights)[-4:]]

    def ours(self) -> list[Tensor]:
        """The loss, of all RoIs and then of parts, and its gradients by features, weight and bias."""
        loss, leaves = self._loss()
        grads = torch.autograd.grad(loss, leaves)
        losses = [loss, *(case._loss()[0] for case in self.parts())]
        return [torch.stack(losses).detach(), *grads]

    def _loss(self) -> tuple[Tensor, list[Tensor]]:
        leaves = [each.detach().requires_grad_() for each in (self.features, self.weight, self.bias)]
        targets = (self.boxes, self.gt_masks, self.gt_index, self.weights, self.sampling_ratio)
        return mask_predict_loss(*leaves, self.labels, *targets), leaves

    def ours_predicted(self, grad: Tensor) -> list[Tensor]:
        """The probabilities, and gradients as above for `grad` [K, M, M] of them."""
        leaves = [each.detach().requires_grad_() for each in (self.features, self.weight, self.bias)]
        result = mask_predict(*leaves, self.labels)
        return [result.detach(), *torch.autograd.grad(result, leaves, grad.to(result.dtype))]

    def truth(self, precision: torch.dtype) -> list[Tensor]:
        """What `ours` is to be, computed in `precision`, from RoIs with weight."""
        loss, leaves = self._true_loss(precision)
        losses = [loss, *(case._true_loss(precision)[0] for case in self.parts())]
        return [torch.stack(losses).detach(), *torch.autograd.grad(loss, leaves)]

    def _true_loss(self, precision: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        leaves, logits = self._logits(precision)
        size = logits.shape[-1]
        used = torch.nonzero(self.weights)[:, 0]
        rois = torch.cat([torch.arange(len(used))[:, None], self.boxes[used]], dim=1).to(precision)
        masks = self.gt_masks[self.gt_index[used], None].to(precision)
        targets = torchvision.ops.roi_align(masks, rois, (size, size), 1.0, self.sampling_ratio, False)[:, 0]
        entropy = binary_cross_entropy_with_logits(logits[used], targets, reduction="none").mean(dim=(1, 2))
        weights = self.weights[used].to(precision)
        return (entropy * weights).sum() / weights.sum(), leaves

    def truth_predicted(self, grad: Tensor, precision: torch.dtype) -> list[Tensor]:
        """What `ours_predicted` is to be."""
        leaves, logits = self._logits(precision)
        result = logits.sigmoid()
        return [result.detach(), *torch.autograd.grad(result, leaves, grad.to(precision))]

    def _logits(self, precision: torch.dtype) -> tuple[list[Tensor], Tensor]:
        """Leaves, and the logits of each RoI's class out of those of all classes."""
        leaves = [each.detach().to(precision).requires_grad_() for each in (self.features, self.weight, self.bias)]
        features, weight, bias = leaves
        if features.ndim == 6:
            features = features.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        of_all = conv2d(features, weight[:, :, None, None], bias)
        labels = torch.where(self.weights != 0, self.labels, 0) if len(weight) > 1 else torch.zeros_like(self.labels)
        return leaves, of_all[torch.arange(len(labels)), labels]

    def result_shape(self) -> tuple[int, int, int]:
        """Of the probabilities."""
        side = self.features.shape[2] if self.features.ndim == 4 else 2 * self.features.shape[1]
        return self.features.shape[0], side, side

    def check(self, seen: list[Tensor], truth: list[Tensor], plain: list[Tensor]) -> None:
        """Asserts the error rule for a result and the three gradients, and their dtypes."""
        compute = torch.promote_types(self.features.dtype, torch.float32)
        dtypes = [compute, self.features.dtype, self.weight.dtype, self.bias.dtype]
        assert [each.dtype for each in seen] == dtypes
        triples = zip(*map(_with_bias_as_a_channel, (seen, truth, plain)), strict=True)
        for (ours, true, rounded), dtype in zip(triples, dtypes, strict=False):
            assert_error_rule(ours, true, rounded.to(dtype), dtype)


def _with_bias_as_a_channel(results: list[Tensor]) -> list[Tensor]:
    """The bias is the weight of a channel that is 1; by itself its gradient is too few numbers for a rule on errors."""
    result, of_features, of_weight, of_bias = results
    return [result, of_features, torch.cat([of_weight, of_bias[:, None]], dim=1)]


def make(
    dtype: torch.dtype = torch.float32,
    form: str = "channels last",
    *,
    classes: int = 4,
    channels: int = 19,
    size: int = 8,
    rois: int = 7,
    weight_dtype: torch.dtype | None = None,
    sampling_ratio: int = -1,
) -> Case:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    features = normal(rois, channels, size, size)
    if form == "blocked":
        features = normal(rois, size // 2, size // 2, 2, 2, channels)
    elif form == "channels last":
        features = features.contiguous(memory_format=torch.channels_last)
    corner = torch.rand((rois, 2), generator=generator) * 20 - 3
    extent = torch.rand((rois, 2), generator=generator) * 20
    return Case(
        features=features.to(dtype),
        weight=(normal(classes, channels) / 2).to(weight_dtype or dtype),
        bias=normal(classes).to(weight_dtype or dtype),
        labels=torch.randint(0, classes, (rois,), generator=generator),
        boxes=torch.cat([corner, corner + extent], dim=1),
        gt_masks=torch.rand((3, 25, 33), generator=generator) > 0.4,
        gt_index=torch.randint(0, 3, (rois,), generator=generator),
        weights=torch.rand(rois, generator=generator) + 0.5,
        sampling_ratio=sampling_ratio,
    )


def with_absent(case: Case) -> tuple[Case, Tensor]:
    """The case with two RoIs that have no weight and hold what must not be used, and the indices of the others."""
    changed = replace(
        case, **{name: getattr(case, name).clone() for name in ("labels", "gt_index", "boxes", "weights")}
    )
    features = case.features.clone()
    features[1], features[3] = float("nan"), float("inf")
    changed.labels[1], changed.labels[3] = 999, -999
    changed.gt_index[1], changed.gt_index[3] = -77, 77
    changed.boxes[1], changed.boxes[3] = float("nan"), float("inf")
    changed.weights[1], changed.weights[3] = 0, 0
    return replace(changed, features=features), torch.tensor([0, 2, *range(4, len(case.labels))])

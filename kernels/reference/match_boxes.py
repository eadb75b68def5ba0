"""Matching of anchors to ground truth by the matrix of all overlaps."""

import torch
from torch import Tensor


def match_boxes(
    anchors: Tensor, gt_boxes: Tensor, gt_counts: Tensor, with_forced: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.match_boxes`: index [B, N], IoU [B, N] and forced matches [B, N]."""
    images, number = gt_boxes.shape[0], anchors.shape[-2]
    compute = torch.promote_types(torch.promote_types(anchors.dtype, gt_boxes.dtype), torch.float32)
    index = torch.zeros((images, number), dtype=torch.int64, device=anchors.device)
    best = torch.full((images, number), -1.0, dtype=compute, device=anchors.device)
    forced = torch.zeros((images, number), dtype=torch.bool, device=anchors.device)
    for image, count in enumerate(gt_counts.tolist()):
        if count == 0 or number == 0:
            continue
        some = anchors if anchors.ndim == 2 else anchors[image]
        overlap = _iou(gt_boxes[image, :count, None].to(compute), some.to(compute))
        best[image] = overlap.amax(dim=0)
        index[image] = (overlap == best[image]).to(torch.uint8).argmax(dim=0)  # the first of equal ones
        if with_forced:
            of_gt = overlap.amax(dim=1, keepdim=True)
            forced[image] = ((overlap == of_gt) & (of_gt > 0)).any(dim=0)
    return index, best, forced


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4]; 0 where it is not a number, as for two boxes without area."""
    width = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    height = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp(min=0)
    intersection = width * height
    area_a, area_b = ((x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (a, b))
    overlap = intersection / (area_a + area_b - intersection)
    return torch.where(overlap.isnan(), 0.0, overlap)

"""Cases of non-maximum suppression."""

import torch
import torchvision
from torch import Tensor

import kernels
from bench.cases import FULL, Workload, rpn_boxes
from bench.kernel_figures.cases.case import Case, Inputs

IOU_THRESHOLD = 0.7


def segmented_nms(seed: int, workload: Workload = FULL) -> Case:
    """Segments of an RPN; torchvision's form is a call for each, and `batched_nms` where time is taken."""
    max_keep = workload.max_keep

    def make(compute: torch.dtype, layout: str) -> Inputs:
        boxes, scores = rpn_boxes(workload.segments, workload.boxes, seed)
        return {"leaves": [], "boxes": boxes, "scores": scores}

    def peer(inputs: Inputs) -> tuple[Tensor, ...]:
        boxes, scores = inputs["boxes"], inputs["scores"]
        keep = torch.full((len(boxes), max_keep), -1, dtype=torch.int64, device=boxes.device)
        for row, segment_boxes, segment_scores in zip(keep, boxes, scores, strict=True):
            kept = torchvision.ops.nms(segment_boxes, segment_scores, IOU_THRESHOLD)[:max_keep]
            row[: len(kept)] = kept
        return keep, (keep >= 0).sum(1)

    def timed_peer(inputs: Inputs) -> tuple[Tensor, ...]:
        boxes, scores = inputs["boxes"], inputs["scores"]
        segment = torch.arange(len(boxes), device=boxes.device).repeat_interleave(scores.shape[1])
        return (torchvision.ops.batched_nms(boxes.flatten(0, 1), scores.flatten(), segment, IOU_THRESHOLD),)

    def least(inputs: Inputs) -> dict[str, int]:
        read = sum(each.numel() * each.element_size() for each in (inputs["boxes"], inputs["scores"]))
        return {"forward": read + 8 * len(inputs["boxes"]) * (max_keep + 1)}

    shape = f"{workload.segments} x {workload.boxes}, top {max_keep}"
    return Case(
        "segmented_nms",
        shape,
        torch.float32,
        "contiguous",
        seed,
        make,
        ours=lambda inputs: kernels.segmented_nms(inputs["boxes"], inputs["scores"], IOU_THRESHOLD, max_keep),
        peer=peer,
        least=least,
        exact=True,
        timed_peer=timed_peer,
    )

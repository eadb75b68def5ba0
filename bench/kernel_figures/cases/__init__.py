"""What `python -m bench kernels` measures: operations, each with torchvision's own form of it.

A new operation is a function of this package that makes its case, and a line in OPERATIONS.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from bench.cases import FULL, Workload
from bench.kernel_figures.cases.boxes import (
    IOU_THRESHOLD,
    batched_nms,
    decode_boxes,
    decode_keypoints,
    match_boxes,
    segmented_nms,
)
from bench.kernel_figures.cases.case import RATIO, Case, Function, Inputs, both, differentiate
from bench.kernel_figures.cases.mask_head import mask_loss, mask_predict, mask_predict_loss
from bench.kernel_figures.cases.masks import encode_masks, mask_runs, paste_masks
from bench.kernel_figures.cases.regions import roi_align, roi_pool, torchvision_pooler

__all__ = [
    "IOU_THRESHOLD",
    "OPERATIONS",
    "WITH_BARS",
    "Case",
    "Function",
    "Inputs",
    "both",
    "cases",
    "differentiate",
    "mask_loss",
    "roi_align",
    "segmented_nms",
    "torchvision_pooler",
]

DTYPES = (torch.float32, torch.bfloat16)
# What makes an operation's cases, given a seed and a workload. Those without features count as float32.
OPERATIONS: dict[str, list[Callable[[int, Workload], Case]]] = {
    "roi_align": [
        *(partial(roi_align, size, dtype, "channels last") for size in (7, 14) for dtype in DTYPES),
        *(partial(roi_align, size, torch.float32, "contiguous") for size in (7, 14)),
    ],
    "segmented_nms": [segmented_nms],
    "mask_loss": [partial(mask_loss, ratio, dtype) for ratio in (RATIO, -1) for dtype in DTYPES],
    "roi_pool": [partial(roi_pool, dtype) for dtype in DTYPES],
    "batched_nms": [batched_nms],
    "match_boxes": [match_boxes],
    "decode_boxes": [partial(decode_boxes, dtype) for dtype in DTYPES],
    "decode_keypoints": [decode_keypoints],
    "mask_predict_loss": [partial(mask_predict_loss, dtype) for dtype in DTYPES],
    "mask_predict": [partial(mask_predict, dtype) for dtype in DTYPES],
    "paste_masks": [paste_masks],
    "encode_masks": [encode_masks],
    "mask_runs": [mask_runs],
}
# Those that bars are about, and that torchvision's own kernels are counted for.
WITH_BARS = ("roi_align", "segmented_nms", "mask_loss")


def cases(
    seeds: Sequence[int] = (4,),
    operations: Sequence[str] = tuple(OPERATIONS),
    dtypes: Sequence[torch.dtype] = DTYPES,
    workload: Workload = FULL,
) -> Iterator[Case]:
    """Those of some operations in some dtypes, once for each seed."""
    for operation in operations:
        for make in OPERATIONS[operation]:
            yield from (case for seed in seeds if (case := make(seed, workload)).dtype in dtypes)

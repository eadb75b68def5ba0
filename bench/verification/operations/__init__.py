"""The public operations of `kernels` as problems to verify: inputs, the call, and torchvision's or pycocotools' answer.

A new operation is a function of this package that makes its problem, and a line in OPERATIONS.
"""

from functools import partial

from bench.verification.operations.boxes import (
    batched_nms,
    decode_boxes,
    decode_keypoints,
    match_boxes,
    nms,
    segmented_nms,
)
from bench.verification.operations.mask_losses import (
    mask_loss,
    mask_loss_with_counts,
    mask_predict,
    mask_predict_loss,
    mask_predict_loss_with_counts,
)
from bench.verification.operations.masks import (
    encode_masks,
    mask_runs,
    pack_masks,
    paste_masks,
    rasterize_polygons,
    unpack_masks,
)
from bench.verification.operations.problem import FORMATS, Make, Problem
from bench.verification.operations.regions import multiscale_roi_align, roi_align, roi_pool

__all__ = ["OPERATIONS", "Make", "Problem"]

# What makes the problem, and the layouts it comes in; after a colon the form of an argument. Ground truth and counts
# are another kernel's concern than features, and logits have strides in every form: of those one layout each.
OPERATIONS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "roi_align": (roi_align, tuple(FORMATS)),
    "multiscale_roi_align": (multiscale_roi_align, tuple(FORMATS)),
    "roi_pool": (roi_pool, tuple(FORMATS)),
    "nms": (nms, ("contiguous",)),
    "batched_nms": (batched_nms, ("contiguous",)),
    "segmented_nms": (segmented_nms, ("contiguous",)),
    "match_boxes": (match_boxes, ("contiguous",)),
    "decode_boxes": (decode_boxes, ("contiguous",)),
    "decode_keypoints": (decode_keypoints, tuple(FORMATS)),
    "mask_loss": (mask_loss, tuple(FORMATS)),
    "mask_loss:packed": (partial(mask_loss, form="packed"), ("channels last",)),
    "mask_loss:polygons": (partial(mask_loss, form="polygons"), ("contiguous",)),
    "mask_loss_with_counts": (mask_loss_with_counts, ("channels last",)),
    "mask_predict": (mask_predict, (*FORMATS, "blocks")),
    "mask_predict_loss": (mask_predict_loss, (*FORMATS, "blocks")),
    "mask_predict_loss:packed": (partial(mask_predict_loss, form="packed"), ("contiguous",)),
    "mask_predict_loss:polygons": (partial(mask_predict_loss, form="polygons"), ("channels last",)),
    "mask_predict_loss_with_counts": (mask_predict_loss_with_counts, ("blocks",)),
    "paste_masks": (paste_masks, ("contiguous",)),
    "encode_masks": (encode_masks, ("contiguous",)),
    "mask_runs": (mask_runs, ("contiguous",)),
    "rasterize_polygons": (rasterize_polygons, ("contiguous",)),
    "pack_masks": (pack_masks, ("contiguous",)),
    "unpack_masks": (unpack_masks, ("contiguous",)),
}

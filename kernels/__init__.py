"""The hot operations of Mask R-CNN as Triton kernels, each with an eager and a reference twin.

Where torchvision.ops has a function, the one here has its name, arguments and result.
"""

from kernels.decode_boxes import decode_boxes
from kernels.decode_keypoints import decode_keypoints
from kernels.dispatch import use
from kernels.encode_masks import encode_masks, mask_runs
from kernels.mask_loss import MaskCounts, mask_loss, mask_loss_with_counts
from kernels.mask_predict import mask_predict, mask_predict_loss, mask_predict_loss_with_counts
from kernels.masks import PackedMasks, Polygons, pack_masks, polygons_from_coco, unpack_masks
from kernels.match_boxes import match_boxes
from kernels.nms import batched_nms, nms, segmented_nms
from kernels.paste_masks import paste_masks
from kernels.rasterize import rasterize_polygons
from kernels.roi_align import multiscale_roi_align, roi_align
from kernels.roi_pool import roi_pool

__all__ = [
    "MaskCounts",
    "PackedMasks",
    "Polygons",
    "batched_nms",
    "decode_boxes",
    "decode_keypoints",
    "encode_masks",
    "mask_loss",
    "mask_loss_with_counts",
    "mask_predict",
    "mask_predict_loss",
    "mask_predict_loss_with_counts",
    "mask_runs",
    "match_boxes",
    "multiscale_roi_align",
    "nms",
    "pack_masks",
    "paste_masks",
    "polygons_from_coco",
    "rasterize_polygons",
    "roi_align",
    "roi_pool",
    "segmented_nms",
    "unpack_masks",
    "use",
]

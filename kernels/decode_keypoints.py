"""Keypoints out of heatmaps (Mask R-CNN, section 3.1, keypoints), without resizing a heatmap to its box in memory."""

import torch
from torch import Tensor

from kernels.checks import check_tensor
from kernels.dispatch import asked_for, run


def decode_keypoints(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Where each heatmap, resized bicubically to its box, is largest; `heatmaps_to_keypoints` of torchvision.

    A box has as many pixels as its sides are long, rounded up and at least 1. Of equal values the first counts, row
    after row; a value that is not a number counts as the largest. There is no gradient.

    Args:
        heatmaps: logits [K, N, H, W] of N keypoints in float32, float16, bfloat16 or float64.
        boxes: [K, 4] as x1, y1, x2, y2. One with a NaN or infinite coordinate, or a side above 32,768, gives zeros.

    Returns:
        x, y and 1 of each keypoint [K, N, 3]; the value there [K, N]; both float32 (float64 for float64 heatmaps).

    Raises:
        ValueError: an argument has the wrong shape, dtype or device.
    """
    check_tensor("heatmaps", heatmaps, ("K", "N", "H", "W"), filled=("H", "W"))
    check_tensor("boxes", boxes, (heatmaps.shape[0], 4), device=heatmaps.device)
    result: tuple[Tensor, Tensor] = _decode_keypoints(heatmaps.detach(), boxes.detach(), asked_for())
    return result


@torch.library.custom_op("mrcnn::decode_keypoints", mutates_args=())
def _decode_keypoints(heatmaps: Tensor, boxes: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    keypoints, scores = run(implementation, "decode_keypoints", "decode_keypoints", heatmaps.device, heatmaps, boxes)
    return keypoints, scores


@_decode_keypoints.register_fake
def _(heatmaps: Tensor, boxes: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(heatmaps.dtype, torch.float32)
    shape = heatmaps.shape[:2]
    return heatmaps.new_empty((*shape, 3), dtype=dtype), heatmaps.new_empty(shape, dtype=dtype)

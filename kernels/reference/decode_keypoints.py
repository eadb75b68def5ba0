"""Keypoints out of heatmaps, each resized to its box as a whole."""

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_LONGEST = 32768


def decode_keypoints(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.decode_keypoints`. heatmaps: [K, N, H, W], boxes: [K, 4]; keypoints [K, N, 3], scores [K, N]."""
    compute = torch.promote_types(heatmaps.dtype, torch.float32)
    keypoints = heatmaps.new_zeros((*heatmaps.shape[:2], 3), dtype=compute)
    scores = heatmaps.new_zeros(heatmaps.shape[:2], dtype=compute)
    for roi, box in enumerate(boxes.to(compute)):
        side = (box[2:] - box[:2]).clamp(min=1)
        if not (box.isfinite().all() and (side <= _LONGEST).all()):
            continue
        width, height = (math.ceil(each) for each in side.tolist())
        for keypoint, heatmap in enumerate(heatmaps[roi].to(compute)):
            resized = interpolate(heatmap[None, None], size=(height, width), mode="bicubic", align_corners=False)[0, 0]
            y, x = divmod(int(resized.flatten().argmax()), width)
            keypoints[roi, keypoint, 0] = (x + 0.5) * (side[0] / width) + box[0]
            keypoints[roi, keypoint, 1] = (y + 0.5) * (side[1] / height) + box[1]
            keypoints[roi, keypoint, 2] = 1
            scores[roi, keypoint] = resized[y, x]
    return keypoints, scores

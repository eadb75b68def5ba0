"""RoIAlign over all pyramid levels and images in one launch, backward, as a gather: no atomics, the same bits
each run.

The gradient of a pixel is the sum over RoIs and their bins of Wy[bin, y] Wx[bin, x] grad[bin] / samples, the
transpose of the forward pass. Before the sums comes what is the same for all channels:

1. `roi_buckets`: for each tile of 8 x 8 pixels the set of the RoIs that reach it;
2. `roi_weights`: for each RoI the weights of its bins, along y and along x;
3. `roi_shares`: how many warps each part of 2 x 4 pixels wants for its work: one, one for each row, or several for a
   row, which get slots of scratch.

Then a warp of `roi_gather` owns a part of a tile, or a row of it, and a block of channels. It goes through the RoIs of
the tile in the order of their index. For each column of bins that reaches the part it loads every bin once, sums it
along y for each row, and gives the sums to the pixels along x. It adds in registers, in the precision of the boxes, and
stores once in the gradient's dtype; what no RoI reaches are stores of zeros, and nothing is cleared before. Where warps
share a row they store to their slots instead, in the precision of the boxes, and `roi_shares` adds these up. The sum
for a pixel does not depend on the configuration.

Every launch has a size that the host knows, and nothing waits for the device.
"""

import math
from collections.abc import Mapping
from typing import Any

import triton
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.roi_buckets import GROUP, TILE, bucket_rois, count_tiles
from kernels.gpu.roi_gather import gather_kernel
from kernels.gpu.roi_geometry import level_tables, map_bucket
from kernels.gpu.roi_shares import PART, deal_shares, sum_shares
from kernels.gpu.roi_weights import QUAD, SKEW, roi_weights
from kernels.memory_format import empty_map

INT32 = 2**31  # values of a map up to which addresses have 32 bits


def roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    feature_shapes: list[tuple[int, int, int, int]],
    channels_last: bool,
    spatial_scales: list[float],
    output_size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> list[Tensor]:
    """The gradient for each level, in the dtype of grad [K, C, *output_size], which may have any strides.

    What is read many times is read best as rows of channels: other gradients are copied to that format.

    A bin counts for the pixels of a part (see above) with a weight that may be zero. So what is not finite in grad
    makes up to 2 x 4 pixels around those of the bin NaN; elsewhere it does not show.
    """
    num_rois, (images, channels) = rois.shape[0], feature_shapes[0][:2]
    if num_rois == 0 or grad.numel() == 0:
        return [empty_map(grad, shape, channels_last).zero_() for shape in feature_shapes]
    rois = rois.contiguous()
    grads = [empty_map(grad, shape, channels_last) for shape in feature_shapes]
    levels = level_tables(feature_shapes, spatial_scales, canonical_scale, canonical_level, rois.dtype)
    pooling = {"POOLED_H": output_size[0], "POOLED_W": output_size[1], "RATIO": max(sampling_ratio, 0)}
    tiles = count_tiles(feature_shapes)
    wide = max(math.prod(shape[1:]) for shape in feature_shapes) >= INT32

    def programs(meta: Mapping[str, Any]) -> tuple[int, int]:
        return len(shares.todo) * (PART[0] // meta["ROWS"]), triton.cdiv(channels, meta["BLOCK_C"])

    with tuning.on_device_of(rois):
        buckets = bucket_rois(rois, levels, tiles, pooling, aligned)
        weights = roi_weights(buckets.grid, buckets.window, feature_shapes, pooling)
        shares = deal_shares(buckets, weights, images, channels, output_size)
        tuning.launch(
            gather_kernel,
            programs,
            (
                tuple(grads),
                shares.todo,
                shares.slot,
                shares.sums,
                grad.permute(0, 2, 3, 1).contiguous(),
                buckets.order,
                buckets.begin,
                buckets.place,
                buckets.members,
                weights.weight,
                weights.reach,
            ),
            num_images=images,
            rois_bucket=tuning.bucket(num_rois),
            map_bucket=map_bucket(feature_shapes),
            words=buckets.members.shape[1],
            rows=weights.rows,
            columns=weights.columns,
            parts=len(shares.todo) - len(shares.slot),
            LEVELS=len(feature_shapes),
            CHANNELS=channels,
            POOLED_H=output_size[0],
            POOLED_W=output_size[1],
            ALIGNED=aligned,
            CHANNELS_LAST=channels_last,
            WIDE=wide,
            GROUP=GROUP,
            TILE=TILE,
            QUAD=QUAD,
            SKEW=SKEW,
            PART_ROWS=PART[0],
        )
        sum_shares(grads, buckets, shares, channels, channels_last, wide)
    return grads

"""Run lengths of pasted masks, pixel by pixel."""

from itertools import groupby

import torch
from torch import Tensor

from kernels.reference.paste_masks import paste_masks


def mask_runs(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float, rule: str, capacity: int
) -> tuple[Tensor, Tensor]:
    """See `kernels.mask_runs`. masks: [N, M, M], boxes: [N, 4]; runs [N, capacity] and counts [N]."""
    runs = masks.new_zeros((masks.shape[0], capacity), dtype=torch.int32)
    counts = masks.new_zeros((masks.shape[0],), dtype=torch.int64)
    for index, pasted in enumerate(paste_masks(masks, boxes, image_size, threshold, rule)):
        pixels = pasted.t().flatten().tolist()
        lengths = [len(list(group)) for _, group in groupby(pixels)]
        if pixels[0]:
            lengths.insert(0, 0)
        counts[index] = len(lengths)
        kept = lengths[:capacity]
        runs[index, : len(kept)] = runs.new_tensor(kept)
    return runs, counts

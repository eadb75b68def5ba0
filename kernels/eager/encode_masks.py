"""Run lengths of pasted masks out of each box alone.

Where a run begins or ends, a pixel differs from the one above it. The few such places of a box are found row by row,
as memory lies, and brought into the order of columns by sorting.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.eager.paste_masks import paste_masks, values_in_boxes


def mask_runs(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float, rule: str, capacity: int
) -> tuple[Tensor, Tensor]:
    """See `kernels.mask_runs`. masks: [N, M, M], boxes: [N, 4]; runs [N, capacity] and counts [N]."""
    height, width = image_size
    runs = torch.zeros((masks.shape[0], capacity), dtype=torch.int32, device=masks.device)
    counts = torch.ones((masks.shape[0],), dtype=torch.int64, device=masks.device)
    runs[:, 0] = height * width
    ends = torch.tensor([0, height * width], device=masks.device)
    for index, row, column, inside in _parts_of_image(masks, boxes, image_size, threshold, rule):
        edges = _edges(inside, row, column, image_size)
        lengths = torch.cat([ends[:1], edges, ends[1:]]).diff()[:capacity]
        runs[index, : len(lengths)] = lengths.to(torch.int32)
        counts[index] = len(edges) + 1
    return runs, counts


def _parts_of_image(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float, rule: str
) -> Iterator[tuple[int, int, int, Tensor]]:
    """Index of a mask, first row and column and pixels [h, w], bool, of the part of the image outside which it is 0."""
    if rule == "centers" and threshold == 0:
        for index, pasted in enumerate(paste_masks(masks, boxes, image_size, threshold, rule)):
            yield index, 0, 0, pasted  # where a mask does not reach it is not below the threshold
        return
    for index, row, column, values in values_in_boxes(masks, boxes, image_size, rule):
        if values.numel():
            yield index, row, column, values > threshold if rule == "torchvision" else values >= threshold


def _edges(inside: Tensor, row: int, column: int, image_size: tuple[int, int]) -> Tensor:
    """Where the image, column after column, changes; inside: [h, w], at `row` and `column`."""
    height, width = image_size
    rows, columns = inside.shape
    # A run goes on from the last row of a column to the first of the next if both are inside.
    above, below = inside.new_zeros((2, 1, columns))
    if rows == height:
        torch.logical_and(inside[-1, :-1], inside[0, 1:], out=below[0, :-1])
        above[0, 1:] = below[0, :-1]
    if row + rows == height and column + columns == width:
        below[0, -1] = inside[-1, -1]  # the image ends without a change
    bordered = torch.cat([above, inside, below])
    y, x = torch.nonzero(bordered[1:] != bordered[:-1], as_tuple=True)
    return ((x + column) * height + (y + row)).sort().values

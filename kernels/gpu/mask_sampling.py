"""RoIAlign of a 0/1 mask, a row of cells at a time.

The cells of a row share their position along y, which is then a number and not a vector. Adaptive sampling puts samples
at most a pixel apart: a pixel row's samples along x are summed while two neighbouring pixels slide along, each pixel
read once, for ROWS pixel rows together; a row counts what the samples along y give it. That is S (S + 1) reads for the
S x S samples of a cell and not 4 S S. A fixed number of samples may lie any way apart, and each reads its four pixels.

Where a multiplication and an addition are one is written down, for kernels whose compiler is told to fuse no others.
"""

import triton
import triton.language as tl

from kernels.gpu.language import sample, sample_range, share_of_sample, tent


@triton.jit
def mean_of_samples(
    masks, y_grid, x_grid, cell_y, cell_x, inside, RATIO: tl.constexpr, BOUNDED: tl.constexpr, ROWS: tl.constexpr = 8
):
    """The target of cells (cell_y, cell_x), a number and a vector.

    Args:
        masks: (pointer to a mask's first pixel, uint8, or word of 32 pixels, int32; how many from one row to the next;
            left, top, right, bottom outside of which nothing is read if BOUNDED).
        y_grid, x_grid: see `sampling_grid`.
        inside: which of the cells there are.
    """
    if RATIO > 0:
        total = _sum_of_few(masks, y_grid, x_grid, cell_y, cell_x, inside, RATIO, BOUNDED)
    else:
        total = _sum_of_many(masks, y_grid, x_grid, cell_y, cell_x, inside, BOUNDED, ROWS)
    return share_of_sample(y_grid, x_grid) * total


@triton.jit
def _sum_of_few(masks, y_grid, x_grid, cell_y, cell_x, inside, RATIO: tl.constexpr, BOUNDED: tl.constexpr):
    """Sum of RATIO x RATIO bilinear samples."""
    total = tl.zeros_like(x_grid[0] + cell_x)
    for y_number in range(RATIO):
        y, y_counts = sample(y_grid, cell_y + tl.zeros_like(cell_x), y_number, RATIO)
        top = y.to(tl.int32)
        y_fraction = y - top
        for x_number in range(RATIO):
            x, counts = sample(x_grid, cell_x, x_number, RATIO)
            counts = counts & y_counts & inside
            left = x.to(tl.int32)
            x_fraction = x - left
            # A pixel beyond the border has weight 0 and is not read.
            right, below = counts & (x_fraction > 0), y_fraction > 0
            v00 = _pixel(masks, top, left, counts, BOUNDED).to(x.dtype)
            v01 = _pixel(masks, top, left + 1, right, BOUNDED).to(x.dtype)
            v10 = _pixel(masks, top + 1, left, counts & below, BOUNDED).to(x.dtype)
            v11 = _pixel(masks, top + 1, left + 1, right & below, BOUNDED).to(x.dtype)
            upper = tl.fma(x_fraction, v01, (1.0 - x_fraction) * v00)
            lower = tl.fma(x_fraction, v11, (1.0 - x_fraction) * v10)
            total = tl.fma(y_fraction, lower, tl.fma(1.0 - y_fraction, upper, total))
    return total


@triton.jit
def _sum_of_many(masks, y_grid, x_grid, cell_y, cell_x, inside, BOUNDED: tl.constexpr, ROWS: tl.constexpr):
    """Sum of samples that lie at most a pixel apart, by pixel rows."""
    height, width = y_grid[4].to(tl.int32), x_grid[4].to(tl.int32)
    y_first, y_stop = sample_range(y_grid, cell_y, 0)
    x_first, x_stop = sample_range(x_grid, cell_x, 0)
    top = _pixel_of(y_grid, cell_y, y_first)
    bottom = tl.where(y_stop > y_first, _pixel_of(y_grid, cell_y, y_stop - 1) + 2, 0)
    x_start = _pixel_of(x_grid, cell_x, x_first)
    most = tl.max(tl.where(inside, x_stop - x_first, 0), 0)
    total = tl.zeros_like(x_grid[0] + cell_x)
    for first_row in range(top, bottom, ROWS):
        row = first_row + tl.arange(0, ROWS)
        weight = _weight_of_rows(y_grid, cell_y, row, first_row, y_first, y_stop, ROWS)
        read = ((row < height) & (weight > 0))[:, None]
        left = x_start - 1
        right_value = _pixel(masks, row[:, None], x_start[None, :], read & inside[None, :], BOUNDED).to(total.dtype)
        left_value = tl.zeros_like(right_value)
        sums = tl.zeros_like(right_value)
        for offset in range(most):
            x, counts = sample(x_grid, cell_x, x_first + offset)
            counts = counts & (x_first + offset < x_stop)
            # Rounding may put a sample just past the next pixel: it is then that pixel.
            now = tl.where(counts, tl.minimum(x.to(tl.int32), left + 1), left)
            moved, left = now > left, now
            fraction = tl.where(counts, tl.minimum(x - left, 1.0), 0.0)
            there = moved & (left < width - 1) & inside
            value = _pixel(masks, row[:, None], left[None, :] + 1, read & there[None, :], BOUNDED).to(total.dtype)
            left_value = tl.where(moved[None, :], right_value, left_value)
            right_value = tl.where(moved[None, :], value, right_value)
            sums = tl.fma(tl.where(counts, 1.0 - fraction, 0.0)[None, :], left_value, sums)
            sums = tl.fma(fraction[None, :], right_value, sums)
        total += tl.sum(sums * weight[:, None], 0)
    return total


@triton.jit
def _weight_of_rows(grid, index, row, first_row, first, stop, ROWS: tl.constexpr):
    """Sum of what the samples from `first` up to `stop` of a bin give to each of ROWS rows from `first_row` on."""
    start, bin, _, step, _ = grid
    corner = start + index * bin
    pace = tl.maximum(step, 1e-30)
    low = tl.floor((first_row - 1.0 - corner) / pace - 0.5)
    high = tl.floor((first_row + ROWS - corner) / pace - 0.5) + 2.0
    low = tl.maximum(tl.minimum(tl.maximum(low, 0.0), 1073741824.0).to(tl.int32), first)
    high = tl.minimum(tl.minimum(tl.maximum(high, 0.0), 1073741824.0).to(tl.int32), stop)
    weight = tl.zeros_like(start + row)
    for number in range(low, high):
        position, counts = sample(grid, index, number)
        weight += tent(row, position, counts)
    return weight


@triton.jit
def _pixel_of(grid, index, number):
    """The pixel at or below a sample, or the next on the map."""
    start, bin, _, step, extent = grid
    position = start + index * bin + (number + 0.5) * step
    return tl.minimum(tl.maximum(position, 0.0), extent - 1.0).to(tl.int32)


@triton.jit
def _pixel(masks, y, x, there, BOUNDED: tl.constexpr):
    """The value at a pixel, 0 or 1, and 0 where it is not `there`."""
    pointer, row_stride, left, top, right, bottom = masks
    if BOUNDED:
        there = there & (x >= left) & (x < right) & (y >= top) & (y < bottom)
    row = pointer + y.to(tl.int64) * row_stride
    if pointer.dtype.element_ty == tl.int32:
        value = (tl.load(row + (x >> 5), mask=there, other=0) >> (x & 31)) & 1
    else:
        value = tl.load(row + x, mask=there, other=0)
    return value

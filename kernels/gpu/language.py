"""Functions that kernels share: exact division, choice among levels, and the sampling grid of RoIAlign.

RoIAlign is separable. Along one axis a RoI of `size` pixels from `start` has bins of `bin = size / bins`
pixels with `samples` samples each, `step = bin / samples` apart. A sample counts if it is at most one pixel
outside the map, is then moved to the border, and gives the two pixels around it the weight max(0, 1 - |pixel
- position|).
"""

import triton
import triton.language as tl


@triton.jit
def divide(a, b):
    """a / b correctly rounded; Triton's own float32 division is not."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, tl.cast(b, tl.float32))


@triton.jit
def pick(values, index, COUNT: tl.constexpr):
    """values[index] of a tuple of numbers, for an index (or tensor of indices) known at run time only."""
    value = values[0]
    for i in tl.static_range(1, COUNT):
        value = tl.where(index == i, values[i], value)
    return value


@triton.jit
def pick_pointer(pointers, index, COUNT: tl.constexpr):
    """pointers[index] of a tuple of pointers, for a scalar index known at run time only."""
    pointer = pointers[0]
    for i in tl.static_range(1, COUNT):
        if index == i:
            pointer = pointers[i]
    return pointer


@triton.jit
def item_and_block(blocks):
    """Which item this program is for, int64, and which of its blocks. The first axis of a grid has room for all; the
    others end at 65,535.
    """
    program = tl.program_id(0)
    return (program // blocks).to(tl.int64), program % blocks


@triton.jit
def finite(x):
    """False for NaN and infinity."""
    return tl.abs(x) < float("inf")


@triton.jit
def bitwise_or(a, b):
    return a | b


@triton.jit
def bit_count(word):
    """How many of 32 bits are set: sums of neighbours, of two bits, of four, and of bytes."""
    word = word.to(tl.uint32, bitcast=True)
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def log2_of_bit(bit):
    """The place of the one bit that is set in 32."""
    return (bit.to(tl.uint32, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def load_box(ptr, dtype: tl.constexpr, mask=None):
    """x1, y1, x2, y2 and the area of the boxes at `ptr`, which may be one; anything where the mask is not set."""
    x1, y1 = tl.load(ptr, mask=mask).to(dtype), tl.load(ptr + 1, mask=mask).to(dtype)
    x2, y2 = tl.load(ptr + 2, mask=mask).to(dtype), tl.load(ptr + 3, mask=mask).to(dtype)
    return x1, y1, x2, y2, (x2 - x1) * (y2 - y1)


@triton.jit
def intersection_over_union(a, b):
    """Of boxes as `load_box` gives them; without fused multiply-adds the same bits in either order."""
    w = tl.maximum(tl.minimum(a[2], b[2]) - tl.maximum(a[0], b[0]), 0.0)
    h = tl.maximum(tl.minimum(a[3], b[3]) - tl.maximum(a[1], b[1]), 0.0)
    intersection = w * h
    return divide(intersection, a[4] + b[4] - intersection)


@triton.jit
def sampling_grid(low, high, scale, extent, BINS: tl.constexpr, RATIO: tl.constexpr, ALIGNED: tl.constexpr):
    """(start, bin, samples as a float, step, extent) of the RoI from `low` to `high` along one axis.

    No samples where the size is not above 0 and RATIO asks for as many as there are pixels.
    """
    OFFSET: tl.constexpr = 0.5 if ALIGNED else 0.0
    start = low * scale - OFFSET
    size = (high * scale - OFFSET) - start
    if not ALIGNED:
        size = tl.maximum(size, 1.0)
    bin = divide(size, BINS)
    samples = tl.zeros_like(bin) + RATIO if RATIO > 0 else tl.maximum(tl.ceil(bin), 0.0)
    step = divide(bin, tl.maximum(samples, 1.0))
    return start, bin, samples, step, extent


@triton.jit
def share_of_sample(y_grid, x_grid):
    """What one sample counts in the mean of its bin."""
    samples = y_grid[2] * x_grid[2]
    return divide(tl.full((), 1.0, samples.dtype), tl.maximum(samples, 1.0))


@triton.jit
def sample_range(grid, index, RATIO: tl.constexpr):
    """First sample and one past the last of bin `index` that can be on the map.

    For adaptive sampling this bounds the work by the map and not by the box. Samples must still be tested.
    """
    start, bin, samples, step, extent = grid
    if RATIO > 0:
        first = tl.zeros_like(start + index).to(tl.int32)
        stop = first + RATIO
    else:
        corner = start + index * bin
        pace = tl.maximum(step, 1e-30)
        first = tl.floor((-1.0 - corner) / pace - 0.5)
        stop = tl.floor((extent - corner) / pace - 0.5) + 2.0
        limit = tl.minimum(samples, 1073741824.0)
        first = tl.minimum(tl.maximum(first, 0.0), limit).to(tl.int32)
        stop = tl.minimum(tl.maximum(stop, 0.0), limit).to(tl.int32)
    return first, stop


@triton.jit
def sample(grid, index, number, RATIO: tl.constexpr = 1):
    """Position of sample `number` of bin `index`, moved onto the map, and whether it counts.

    Like torchvision it divides last where that shows: in float64, and where RATIO says that samples are no power of 2.
    """
    start, bin, samples, step, extent = grid
    if start.dtype == tl.float64 or (RATIO & (RATIO - 1)) != 0:
        offset = divide((number + 0.5) * bin, samples)
    else:
        offset = (number + 0.5) * step
    position = start + index * bin + offset
    counts = (position >= -1.0) & (position <= extent)
    position = tl.minimum(tl.maximum(position, 0.0), extent - 1.0)
    return tl.where(counts, position, 0.0), counts


@triton.jit
def tent(pixel, position, counts):
    """Weight that a sample gives to a pixel, along one axis."""
    return tl.where(counts, tl.maximum(1.0 - tl.abs(pixel - position), 0.0), 0.0)


@triton.jit
def column_of_map(pointer, line, used, row, y_grid, y_first, y_stop, y_count, RATIO: tl.constexpr):
    """One column of the map summed along y for each row of bins.

    `line` is the distance of two rows of the map: a number, or one for each row of bins.
    """
    index_type: tl.constexpr = line.dtype
    dtype: tl.constexpr = y_grid[0].dtype
    value = tl.zeros(used.shape, dtype)
    if RATIO > 0 and RATIO <= 4:
        # Neighbouring samples share rows of the map: each row is read once, with the sum of its weights.
        for number in tl.static_range(RATIO):
            y, here = sample(y_grid, row, number)
            top = y.to(tl.int32)
            before, there = sample(y_grid, row, number - 1 if number > 0 else 0)
            last = before.to(tl.int32)
            for corner in tl.static_range(2):
                pixel = top + corner
                weight = tl.zeros_like(y)
                for other in tl.static_range(RATIO):
                    position, counts = sample(y_grid, row, other)
                    weight += tent(pixel, position, counts)
                fresh = here & (weight > 0)
                if number > 0:
                    fresh = fresh & ~(there & ((pixel == last) | (pixel == last + 1)))
                feature = tl.load(
                    pointer + (pixel.to(index_type) * line)[:, None], mask=fresh[:, None] & used, other=0.0
                )
                value = tl.fma(weight[:, None], feature.to(dtype), value)
    else:
        for offset in range(y_count):
            number = y_first + offset
            y, counts = sample(y_grid, row, number)
            counts = counts & (number < y_stop)
            top = y.to(tl.int32)
            fraction = y - top
            upper = pointer + (top.to(index_type) * line)[:, None]
            feature = tl.load(upper, mask=counts[:, None] & used, other=0.0)
            value = tl.fma(tl.where(counts, 1.0 - fraction, 0.0)[:, None], feature.to(dtype), value)
            lower = pointer + ((top + 1).to(index_type) * line)[:, None]
            feature = tl.load(lower, mask=(counts & (fraction > 0))[:, None] & used, other=0.0)
            value = tl.fma(tl.where(counts, fraction, 0.0)[:, None], feature.to(dtype), value)
    return value


@triton.jit
def log1p(x):
    """log(1 + x) for x in [0, 1]; in float32 to about an ulp, in fewer instructions than a logarithm has."""
    if x.dtype == tl.float64:  # without losing small x (Kahan)
        u = 1.0 + x
        value = tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))
    else:  # 2 artanh(s) = 2 (s + s^3 / 3 + s^5 / 5 ...), s being at most 1/3
        s = divide(x, 2.0 + x)
        square = s * s
        series = tl.fma(square, 1 / 13, 1 / 11)
        series = tl.fma(square, series, 1 / 9)
        series = tl.fma(square, series, 1 / 7)
        series = tl.fma(square, series, 1 / 5)
        series = tl.fma(square, series, 1 / 3)
        value = 2.0 * tl.fma(s * square, series, s)
    return value

"""Crowded parts of tiles, shared by several warps, and the sums of their sums.

Proposals crowd around objects: some pixels are reached by fifty RoIs and most by none. A warp that adds fifty still
works when all others are done. So the rows of a part with much work each get a warp of their own. Where a row still
has much work, its RoIs are dealt out, as cards are, to 2 to 32 warps. What each gives to the pixels of the row goes to
a slot of scratch, and a last kernel adds the slots of a row in their order and stores the gradient.

Work is counted from the bins that reach the part, so that only what really is crowded is dealt out, and little goes
through scratch.

How many warps share a row depends on the work for its part alone, so that every configuration and every run adds in
the same order. The host knows how many slots there are. If there is so much work that these do not do, all parts get
proportionately fewer of them, and no warp works for long beside the whole.

The gather takes one (level, image) after another, coarse levels first: what crowds there, then all else. So the longest
warps start early, and the RoIs are still in the L2 cache that both want.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import pick_pointer
from kernels.gpu.roi_buckets import GROUP, TILE, TileBuckets
from kernels.gpu.roi_weights import RoiWeights

PART = 2, 4  # rows and columns of a part of a tile
WORK, SHARE = 13200, 8000  # that a warp may do alone, and should where RoIs are dealt out; see `_work`
MOST = 32  # warps for a row of a part
SLOTS, SCRATCH = 1536, 3 << 20  # of an image at most, and of the values in them
PARTS, BLOCK = 256, 1024  # dealt out and values summed at a time


@dataclass(frozen=True)
class Shares:
    """Which warp sums what.

    Attributes:
        todo: [parts + slots] what the gather does one after another: a PART of a tile that is whole, counted through
            all tiles, and row after row in a tile; with the number of parts added if no RoI reaches it; or a slot,
            with twice that number added; or nothing, -1.
        slot: [slots, 3] whose share it is, counted through all rows of parts, or -1; which, from 0 for each row; and
            how many there are. Those of a row are neighbours.
        sums: [slots, PART columns, C] where maps are channels last, else [slots, C, PART columns]; in the precision of
            the boxes. Used where several share a row.
    """

    todo: Tensor
    slot: Tensor
    sums: Tensor


def deal_shares(buckets: TileBuckets, weights: RoiWeights, images: int, channels: int, bins: tuple[int, int]) -> Shares:
    """Says which parts are dealt out and makes room for their sums; no slots where so few RoIs cannot crowd.

    Args:
        bins: of a RoI, along y and x.
    """
    tiles, words = buckets.members.shape
    parts = tiles * (TILE * TILE // (PART[0] * PART[1]))
    new_empty = buckets.members.new_empty
    wanted = new_empty(parts), new_empty(parts)
    tuning.launch(
        _work_kernel,
        (tiles,),
        (buckets.order, buckets.begin, buckets.place, buckets.members, weights.reach, *wanted),
        num_images=images,
        words=words,
        rows=weights.rows,
        columns=weights.columns,
        WORK=WORK,
        SHARE=SHARE,
        MOST=MOST,
        GROUP=GROUP,
        TILE=TILE,
        ROWS=PART[0],
        COLUMNS=PART[1],
        num_warps=1,
    )
    end = torch.cumsum(wanted[0], 0, dtype=torch.int32)
    values = PART[1] * channels
    slots = min(2 * parts * MOST, images * max(2, min(SLOTS, SCRATCH // values)))
    if len(buckets.order) * (75 + bins[1] * (48 + 31 * bins[0])) <= WORK:  # see `_work`
        slots = 0
    shares = Shares(
        todo=new_empty(parts + slots),
        slot=new_empty((slots, 3)),
        sums=buckets.grid.new_empty((slots, values)),
    )
    tuning.launch(
        _deal_kernel,
        (triton.cdiv(max(parts, slots), PARTS),),
        (buckets.place, *wanted, end, shares.todo, shares.slot),
        parts=parts,
        slots=slots,
        TILE_PARTS=parts // tiles,
        BLOCK=PARTS,
    )
    return shares


def sum_shares(
    grads: Sequence[Tensor],
    buckets: TileBuckets,
    shares: Shares,
    channels: int,
    channels_last: bool,
    wide: bool,
) -> None:
    """Writes the gradient of the rows that several warps shared.

    Args:
        grads: of each level.
        wide: whether a map of an image has 2 ** 31 values or more.
    """
    slots, values = shares.sums.shape
    if slots == 0:
        return
    tuning.launch(
        _sum_kernel,
        (slots, triton.cdiv(values, BLOCK)),
        (tuple(grads), shares.sums, shares.slot, buckets.place),
        LEVELS=len(grads),
        CHANNELS=channels,
        CHANNELS_LAST=channels_last,
        WIDE=wide,
        TILE=TILE,
        ROWS=PART[0],
        COLUMNS=PART[1],
        BLOCK=BLOCK,
    )


@triton.jit(do_not_specialize=["num_images", "words", "rows", "columns"])
def _work_kernel(
    order_ptr,  # see `TileBuckets` for this and the next three
    begin_ptr,
    place_ptr,
    member_ptr,
    reach_ptr,  # see `RoiWeights`
    wanted_ptr,  # [tiles, parts] warps that should share the work for each; 0: the part may be whole
    upper_ptr,  # [tiles, parts] of them, those for the upper row; 1 for whole parts that a RoI reaches, else 0
    num_images,
    words,
    rows,
    columns,
    WORK: tl.constexpr,
    SHARE: tl.constexpr,
    MOST: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Program counts the work for the parts of a tile."""
    PARTS: tl.constexpr = TILE * TILE // (ROWS * COLUMNS)
    tl.static_assert(ROWS == 2)
    tile = tl.program_id(0)
    part = tl.arange(0, PARTS)
    _, _, y, x, _, _ = place_of_part(place_ptr, tile * PARTS + part, TILE, ROWS, COLUMNS)
    segment = tl.load(place_ptr + tile * 8) * num_images + tl.load(place_ptr + tile * 8 + 1)
    begin = tl.load(begin_ptr + segment).to(tl.int32)
    end = tl.load(begin_ptr + segment + 1).to(tl.int32)
    members = member_ptr + tile.to(tl.int64) * words
    lane = tl.arange(0, GROUP)[:, None]
    reached = tl.zeros((PARTS,), tl.int32)
    whole = tl.zeros((PARTS,), tl.int32)
    upper = tl.zeros((PARTS,), tl.int32)
    lower = tl.zeros((PARTS,), tl.int32)
    for group in range(begin, end, GROUP):
        bits = tl.load(members)
        members += 1
        if bits != 0:
            hit = (bits >> lane) & 1 != 0
            reach = reach_ptr + tl.load(order_ptr + group + lane, mask=hit, other=0) * (2 * (rows + columns) + 2)
            of_rows, of_columns = reach + y[None, :], reach + 2 * rows + x[None, :]
            first, last = tl.load(of_rows, mask=hit, other=0), tl.load(of_rows + rows, mask=hit, other=-1)
            first_below = tl.load(of_rows + 1, mask=hit, other=0)
            last_below = tl.load(of_rows + rows + 1, mask=hit, other=-1)
            across = tl.load(of_columns + columns + (COLUMNS - 1), mask=hit, other=-1)
            across = across - tl.load(of_columns, mask=hit, other=0) + 1
            reached += tl.sum((hit & (last_below >= first) & (across > 0)).to(tl.int32), 0)
            whole += tl.sum(tl.where(hit, _work(last_below - first + 1, across, 2), 0), 0)
            upper += tl.sum(tl.where(hit, _work(last - first + 1, across, 1), 0), 0)
            lower += tl.sum(tl.where(hit, _work(last_below - first_below + 1, across, 1), 0), 0)
            whole = tl.minimum(whole, SHARE * MOST)
            upper, lower = tl.minimum(upper, SHARE * MOST), tl.minimum(lower, SHARE * MOST)
    upper = tl.where(upper > WORK, tl.cdiv(upper, SHARE), 1)
    lower = tl.where(lower > WORK, tl.cdiv(lower, SHARE), 1)
    at = tile * PARTS + part
    tl.store(wanted_ptr + at, tl.where(whole > WORK, upper + lower, 0))
    tl.store(upper_ptr + at, tl.where(reached > 0, upper, 0))


@triton.jit
def _work(y_bins, x_bins, ROWS: tl.constexpr):
    """About the instructions that add so many bins of a RoI to ROWS rows of a part, or that see that there are none."""
    more = tl.maximum(y_bins - 3, 0)  # bins of a row, whose weights are not kept
    if ROWS == 2:
        work = 75 + x_bins * (48 + 20 * y_bins + 11 * more)
    else:
        work = 75 + x_bins * (32 + 15 * y_bins + 9 * more)
    return tl.where((y_bins > 0) & (x_bins > 0), work, 28)


@triton.jit(do_not_specialize=["parts", "slots"])
def _deal_kernel(
    place_ptr,  # see `TileBuckets`
    wanted_ptr,  # [parts] see `_work_kernel`, and the next
    upper_ptr,
    end_ptr,  # [parts] sum of wanted up to and with each
    todo_ptr,  # see `Shares` for this and the next
    slot_ptr,
    parts,
    slots,
    TILE_PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program gives slots to BLOCK parts, and marks those of BLOCK slots that nobody wants."""
    part = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = part < parts
    wanted = tl.load(wanted_ptr + part, mask=inside, other=0)
    upper = tl.load(upper_ptr + part, mask=inside, other=0)
    end = tl.load(end_ptr + part, mask=inside, other=0)
    all_wanted = tl.load(end_ptr + parts - 1)
    all_used = _scaled(all_wanted, slots, all_wanted)
    end, begin = _scaled(end, slots, all_wanted), _scaled(end - wanted, slots, all_wanted)
    number = end - begin
    dealt = number > 1  # one warp for each row at least
    reached = upper > 0
    upper = tl.minimum(tl.maximum(number * upper // tl.maximum(wanted, 1), 1), number - 1)

    place = place_ptr + part // TILE_PARTS * 8
    first = tl.load(place + 4, mask=inside, other=0) * TILE_PARTS  # part of the same level and image
    last = tl.load(place + 5, mask=inside, other=0) * TILE_PARTS + (TILE_PARTS - 1)
    before = _scaled(tl.load(end_ptr + first - 1, mask=inside & (first > 0), other=0), slots, all_wanted)
    until = _scaled(tl.load(end_ptr + last, mask=inside, other=0), slots, all_wanted)
    turn = (parts - 1 - last) + (all_used - until)
    for i in range(tl.max(number)):
        given = inside & (i < number)
        lower = i >= upper
        slot = slot_ptr + (begin + i) * 3
        tl.store(slot, tl.where(dealt, 2 * part + lower.to(tl.int32), -1), mask=given)
        tl.store(slot + 1, tl.where(lower, i - upper, i), mask=given)
        tl.store(slot + 2, tl.where(lower, number - upper, upper), mask=given)
        tl.store(todo_ptr + turn + (begin - before) + i, tl.where(dealt, 2 * parts + begin + i, -1), mask=given)
    whole = tl.where(dealt, -1, tl.where(reached, part, parts + part))
    tl.store(todo_ptr + turn + (until - before) + (last - part), whole, mask=inside)
    unused = (part < slots) & (part >= all_used)
    tl.store(slot_ptr + part * 3, tl.full((BLOCK,), -1, tl.int32), mask=unused)
    tl.store(todo_ptr + parts + part, tl.full((BLOCK,), -1, tl.int32), mask=unused)


@triton.jit
def _scaled(place, slots, all_wanted):
    """A place among the slots wanted as one among those that there are."""
    scaled = place.to(tl.int64) * slots // tl.maximum(all_wanted, 1)
    return tl.where(all_wanted > slots, scaled, place).to(tl.int32)


@triton.jit
def _sum_kernel(
    grads,  # per level [N, C, H_l, W_l], contiguous or channels last
    sums_ptr,  # see `Shares` for this and the next
    slot_ptr,
    place_ptr,  # see `TileBuckets`
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (slot, block of values) adds all shares of a row, if the slot is that of its first of several."""
    VALUES: tl.constexpr = COLUMNS * CHANNELS
    slot = tl.program_id(0)
    row = tl.load(slot_ptr + slot * 3)
    share = tl.load(slot_ptr + slot * 3 + 1, mask=row >= 0, other=-1)
    number = tl.load(slot_ptr + slot * 3 + 2, mask=share == 0, other=0)
    if number > 1:
        value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = value < VALUES
        source = sums_ptr + slot.to(tl.int64) * VALUES + value
        total = tl.zeros((BLOCK,), sums_ptr.dtype.element_ty)
        for share in range(0, number, 2):  # two loads at a time
            first = tl.load(source, mask=inside, other=0.0)
            second = tl.load(source + VALUES, mask=inside & (share + 1 < number), other=0.0)
            total = total + first + second
            source += 2 * VALUES

        level, image, y, x, height, width = place_of_part(place_ptr, row // ROWS, TILE, ROWS, COLUMNS)
        y += row % ROWS
        index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
        across = width.to(index_type)
        plane = height * across
        out = pick_pointer(grads, level, LEVELS) + image.to(tl.int64) * (plane * CHANNELS)
        if CHANNELS_LAST:
            column = value // CHANNELS
            out += (y * across + x) * CHANNELS + value
        else:
            column = value % COLUMNS
            out += y * across + x + value // COLUMNS * plane + column
        tl.store(out, total.to(out.dtype.element_ty), mask=inside & (column < width - x) & (y < height))


@triton.jit
def place_of_part(place_ptr, part, TILE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Level, image, first row and first column of a part, counted through all tiles; height and width of its map."""
    PARTS: tl.constexpr = TILE * TILE // (ROWS * COLUMNS)
    place_ptr += part // PARTS * 8
    y = tl.load(place_ptr + 2) + part % PARTS // (TILE // COLUMNS) * ROWS
    x = tl.load(place_ptr + 3) + part % (TILE // COLUMNS) * COLUMNS
    return tl.load(place_ptr), tl.load(place_ptr + 1), y, x, tl.load(place_ptr + 6), tl.load(place_ptr + 7)

"""Crowded parts of tiles, shared by several warps, and the sums of their sums.

Proposals crowd around objects: some pixels are reached by fifty RoIs and most by none. A warp that adds fifty still
works when all others are done. So the RoIs of a part with much work are dealt out, as cards are, to 3 to 32 warps: more
than the work asks for, as some get more than others. What each gives to the pixels of the part goes to a slot of
scratch, and a last kernel adds the slots of a part in their order and stores the gradient. Where there are too few
RoIs for that, no slots are made.

Work is counted from the bins that reach the part, so that only what really is crowded goes through scratch.

How many warps share a part depends on its work alone, so that every configuration and every run adds in the same
order. The host knows how many slots there are. If there is so much work that these do not do, all parts get
proportionately fewer of them, and no warp works for long beside the whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import tuning
from kernels.gpu.language import pick, pick_pointer
from kernels.gpu.roi_buckets import GROUP, TILE, TileBuckets
from kernels.gpu.roi_weights import RoiWeights

PART = 2, 4  # rows and columns of a part of a tile
WORK, SHARE = 11300, 5300  # that a warp may do alone, and should where RoIs are dealt out; see `_work`
MOST = 32  # warps for a part
SLOTS, SCRATCH = 1536, 3 << 20  # of an image at most, and of the values in them
PARTS, BLOCK = 256, 1024  # dealt out and values summed at a time


@dataclass(frozen=True)
class Shares:
    """Which warp sums what.

    Attributes:
        number: [tiles, parts] warps that share each PART of a tile, row after row; 0 where no RoI reaches it.
        part: [slots] whose share it is, counted through all tiles; -1 for unused slots. Those of a part are neighbours.
        share: [slots] from 0 for each part.
        sums: [slots, PART, C] where maps are channels last, else [slots, C, PART]; in the precision of the boxes.
    """

    number: Tensor
    part: Tensor
    share: Tensor
    sums: Tensor


def deal_shares(
    buckets: TileBuckets, weights: RoiWeights, images: int, channels: int, pooling: Mapping[str, Any]
) -> Shares:
    """Says which parts are dealt out and makes room for their sums; no slots where all are alone.

    Args:
        pooling: POOLED_H and POOLED_W.
    """
    tiles, words = buckets.members.shape
    number = buckets.members.new_empty((tiles, TILE * TILE // (PART[0] * PART[1])))
    wanted = number.new_empty(number.shape)
    tuning.launch(
        _work_kernel,
        (tiles,),
        (buckets.order, buckets.begin, buckets.place, buckets.members, weights.reach, wanted, number),
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
    values = PART[0] * PART[1] * channels
    work = len(buckets.order) * _work.fn(pooling["POOLED_H"], pooling["POOLED_W"])
    slots = min(number.numel() * MOST, images * max(1, min(SLOTS, SCRATCH // values))) if work > WORK else 0
    part, share = number.new_empty(slots), number.new_empty(slots)
    sums = buckets.grid.new_empty((slots, values))
    if slots == 0:
        return Shares(number, part, share, sums)
    end = torch.cumsum(wanted.view(-1), 0)
    tuning.launch(
        _deal_kernel,
        (triton.cdiv(max(number.numel(), slots), PARTS),),
        (wanted, end, number, part, share),
        parts=number.numel(),
        slots=slots,
        MOST=MOST,
        BLOCK=PARTS,
    )
    return Shares(number, part, share, sums)


def sum_shares(
    grads: Sequence[Tensor],
    buckets: TileBuckets,
    shares: Shares,
    levels: Mapping[str, Any],
    channels: int,
    channels_last: bool,
    wide: bool,
) -> None:
    """Writes the gradient of the parts that were dealt out.

    Args:
        grads: of each level.
        levels: see `level_tables`.
        wide: whether a map of an image has 2 ** 31 values or more.
    """
    slots, values = shares.sums.shape
    if slots == 0:
        return
    tuning.launch(
        _sum_kernel,
        (slots, triton.cdiv(values, BLOCK)),
        (tuple(grads), shares.sums, shares.number, shares.part, shares.share, buckets.place),
        levels=levels["levels"],
        LEVELS=levels["LEVELS"],
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
    wanted_ptr,  # [tiles, parts] warps that should share the work for each part; 0: one will do
    number_ptr,  # [tiles, parts] 1 for parts that a RoI reaches, else 0
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
    tile = tl.program_id(0)
    part = tl.arange(0, PARTS)
    _, _, y, x = place_of_part(place_ptr, tile * PARTS + part, TILE, ROWS, COLUMNS)
    segment = tl.load(place_ptr + tile * 4) * num_images + tl.load(place_ptr + tile * 4 + 1)
    begin = tl.load(begin_ptr + segment).to(tl.int32)
    end = tl.load(begin_ptr + segment + 1).to(tl.int32)
    members = member_ptr + tile.to(tl.int64) * words
    lane = tl.arange(0, GROUP)[:, None]
    work = tl.zeros((PARTS,), tl.int32)
    for group in range(begin, end, GROUP):
        bits = tl.load(members)
        members += 1
        if bits != 0:
            hit = (bits >> lane) & 1 != 0
            reach = reach_ptr + tl.load(order_ptr + group + lane, mask=hit, other=0) * (2 * (rows + columns))
            of_rows, of_columns = reach + y[None, :], reach + 2 * rows + x[None, :]
            y_bins = tl.load(of_rows + rows + (ROWS - 1), mask=hit, other=-1) - tl.load(of_rows, mask=hit, other=0) + 1
            x_bins = tl.load(of_columns + columns + (COLUMNS - 1), mask=hit, other=-1)
            x_bins = x_bins - tl.load(of_columns, mask=hit, other=0) + 1
            work += tl.sum(tl.where((y_bins > 0) & (x_bins > 0), _work(y_bins, x_bins), 0), 0)
            work = tl.minimum(work, SHARE * MOST)
    tl.store(
        wanted_ptr + tile * PARTS + part,
        tl.where(work > WORK, tl.cdiv(work, SHARE), 0),
    )
    tl.store(number_ptr + tile * PARTS + part, (work > 0).to(tl.int32))


@triton.jit
def _work(y_bins, x_bins):
    """About the instructions that add so many bins of a RoI to a part, four channels a thread."""
    return 60 + x_bins * (40 + 22 * y_bins)


@triton.jit(do_not_specialize=["parts", "slots"])
def _deal_kernel(
    wanted_ptr,  # [parts] see `_work_kernel`
    end_ptr,  # [parts] sum of wanted up to and with each
    number_ptr,  # [parts] see `_work_kernel`, and `Shares` once this is done
    part_ptr,  # [slots] see `Shares`, and the next
    share_ptr,
    parts,
    slots,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program gives slots to BLOCK parts, and marks those of BLOCK slots that nobody wants."""
    part = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = part < parts
    wanted = tl.load(wanted_ptr + part, mask=inside, other=0)
    end = tl.load(end_ptr + part, mask=inside, other=0)
    all_wanted = tl.load(end_ptr + parts - 1)
    end, begin = _scaled(end, slots, all_wanted), _scaled(end - wanted, slots, all_wanted)
    number = end - begin
    tl.store(number_ptr + part, number, mask=inside & (number > 1))
    for share in range(MOST):
        tl.store(part_ptr + begin + share, tl.where(number > 1, part, -1), mask=inside & (share < number))
        tl.store(share_ptr + begin + share, tl.zeros_like(part) + share, mask=inside & (share < number))
    unused = (part < slots) & (part >= _scaled(all_wanted, slots, all_wanted))
    tl.store(part_ptr + part, tl.full((BLOCK,), -1, tl.int32), mask=unused)


@triton.jit
def _scaled(place, slots, all_wanted):
    """A place among the slots wanted as one among those that there are."""
    return tl.where(all_wanted > slots, place * slots // tl.maximum(all_wanted, 1), place).to(tl.int32)


@triton.jit
def _sum_kernel(
    grads,  # per level [N, C, H_l, W_l], contiguous or channels last
    sums_ptr,  # see `Shares` for this and the next three
    number_ptr,
    part_ptr,
    share_ptr,
    place_ptr,  # see `TileBuckets`
    levels,  # as in `level_tables`
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (slot, block of values) adds all shares of a part, if the slot is that of its first."""
    VALUES: tl.constexpr = ROWS * COLUMNS * CHANNELS
    slot = tl.program_id(0)
    part = tl.load(part_ptr + slot)
    if tl.load(share_ptr + slot, mask=part >= 0, other=-1) == 0:
        value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = value < VALUES
        number = tl.load(number_ptr + part)
        source = sums_ptr + slot.to(tl.int64) * VALUES + value
        total = tl.zeros((BLOCK,), sums_ptr.dtype.element_ty)
        for share in range(0, number, 2):  # two loads at a time
            first = tl.load(source, mask=inside, other=0.0)
            second = tl.load(source + VALUES, mask=inside & (share + 1 < number), other=0.0)
            total = total + first + second
            source += 2 * VALUES

        level, image, y, x = place_of_part(place_ptr, part, TILE, ROWS, COLUMNS)
        height = pick(levels[0], level, LEVELS).to(tl.int32)
        width = pick(levels[1], level, LEVELS).to(tl.int32)
        index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
        across = width.to(index_type)
        plane = height * across
        out = pick_pointer(grads, level, LEVELS) + image.to(tl.int64) * (plane * CHANNELS)
        if CHANNELS_LAST:
            row, column = value // (CHANNELS * COLUMNS), value // CHANNELS % COLUMNS
            out += (y * across + x) * CHANNELS
            out += row * (across * CHANNELS) + value % (CHANNELS * COLUMNS)
        else:
            row, column = value // COLUMNS % ROWS, value % COLUMNS
            out += y * across + x + value // (ROWS * COLUMNS) * plane + row * across + column
        inside = inside & (row < height - y) & (column < width - x)
        tl.store(out, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def place_of_part(place_ptr, part, TILE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Level, image, first row and first column of a part, counted through all tiles."""
    PARTS: tl.constexpr = TILE * TILE // (ROWS * COLUMNS)
    place_ptr += part // PARTS * 4
    y = tl.load(place_ptr + 2) + part % PARTS // (TILE // COLUMNS) * ROWS
    x = tl.load(place_ptr + 3) + part % (TILE // COLUMNS) * COLUMNS
    return tl.load(place_ptr), tl.load(place_ptr + 1), y, x

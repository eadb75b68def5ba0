"""How crowded parts are dealt out, as compiled code."""

import pytest
import torch
import triton

from bench.virtual_gpu.intercept import active
from kernels.gpu import roi_shares, tuning
from kernels.gpu.roi_buckets import TILE

pytestmark = pytest.mark.compiled


def test_more_work_than_there_are_slots() -> None:
    """So much of it, for so many slots, that their product is beyond 32 bits: each slot is given once all the same."""
    tiles, slots, wanted = 1100, 4 * roi_shares.SLOTS, 2 * roi_shares.MOST
    rows, columns = roi_shares.PART
    parts = tiles * (TILE * TILE // (rows * columns))
    assert parts * wanted * slots > 2**31
    place = torch.zeros((tiles, 8), dtype=torch.int32)
    place[:, 5] = tiles - 1  # the last tile of the same level and image
    todo = torch.empty(parts + slots, dtype=torch.int32)
    slot = torch.empty((slots, 3), dtype=torch.int32)
    with active():
        tuning.launch(
            roi_shares._deal_kernel,
            (triton.cdiv(max(parts, slots), roi_shares.PARTS),),
            (
                place,
                torch.full((parts,), wanted, dtype=torch.int32),
                torch.full((parts,), wanted // 2, dtype=torch.int32),
                torch.arange(1, parts + 1, dtype=torch.int32) * wanted,
                todo,
                slot,
            ),
            parts=parts,
            slots=slots,
            TILE_PARTS=parts // tiles,
            BLOCK=roi_shares.PARTS,
        )
    # Fewer slots than parts: a part gets one, which is not enough for both of its rows, or none; all stay whole.
    assert torch.equal(slot[:, 0], torch.full((slots,), -1, dtype=torch.int32))
    assert torch.equal(todo[todo >= 0].sort().values, torch.arange(parts, dtype=torch.int32))
    assert int((todo == -1).sum()) == slots

"""The bars of the kernels on the virtual GPU: what was asked, as data, beside what rows show."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bench.bars import Seen
from bench.kernel_figures.mask_predict_counts import FIGURE as LARGEST
from bench.kernel_figures.torchvision_counts import TORCHVISION
from bench.results import Row

TIME = "time / torchvision's"
INSTRUCTIONS = "instructions / torchvision's"
LINES = "L1 lines / torchvision's"
BYTES = "bytes / torchvision's"
# Figures of a row that a ratio to torchvision's is made of.
RATIOS = {TIME: "time bound, us", INSTRUCTIONS: "M instructions", LINES: "M L1 lines"}


@dataclass(frozen=True)
class Bar:
    """A limit on a figure, at every seed.

    Attributes:
        case, dtype, layout: of the rows that it is for; any layout if that is empty.
        most: the figure may be at most this; at_least: or at least this.
    """

    case: str
    dtype: str
    figure: str
    most: float | None = None
    layout: str = "contiguous"
    at_least: float | None = None

    @property
    def asked(self) -> str:
        if self.most is not None:
            return f"at most {self.most:,g}" if self.most else "none"
        return f"at least {self.at_least:,g}"

    def holds(self, value: float) -> bool:
        """Not if it is NaN."""
        return value <= self.most if self.most is not None else value >= (self.at_least or 0)


def _roi_align() -> Iterator[Bar]:
    limits = {  # direction, dtype: time bound at 7x7 and 14x14
        ("forward", "float32"): (0.30, 0.18),
        ("forward", "bfloat16"): (0.16, 0.12),
        ("backward", "float32"): (0.15, 0.15),
        ("backward", "bfloat16"): (0.11, 0.09),
    }
    for (direction, dtype), times in limits.items():
        for size, time in zip((7, 14), times, strict=True):
            name, last = f"roi_align {size}x{size}, {direction}", "channels last"
            yield Bar(name, dtype, TIME, time, last)
            if direction == "backward":
                yield Bar(name, dtype, "DRAM / least", 1.08, last)
                yield Bar(name, dtype, "longest warp", 15_000, last)
                yield Bar(name, dtype, "M atomic sectors", 0, last)
                yield Bar(name, dtype, "waits", 0, last)
                yield Bar(name, dtype, "orders with the same bits", None, last, at_least=3)
            elif dtype == "float32":
                yield Bar(name, dtype, LINES, 0.10, last)
                yield Bar(name, dtype, "DRAM / least", 1.03, last)
    for size in (7, 14):
        yield Bar(f"roi_align {size}x{size}, forward", "float32", TIME, 1.0)
        yield Bar(f"roi_align {size}x{size}, backward", "float32", TIME, 0.5)


def _others() -> Iterator[Bar]:
    nms = "segmented_nms 10 x 2000, top 1000, forward"
    yield Bar(nms, "float32", f"mask kernel, {INSTRUCTIONS}", 0.12)
    yield Bar(nms, "float32", "mask kernel, registers", 64)
    yield Bar(nms, "float32", "reduction, instructions a segment", 60_000)
    yield Bar(nms, "float32", "selections unlike torchvision's", 0)
    yield Bar(nms, "float32", "waits", 0)
    for dtype in ("float32", "bfloat16"):
        yield Bar("mask_loss 28x28, ratio 2, forward", dtype, BYTES, 0.025)
        yield Bar("mask_loss 28x28, adaptive, forward", dtype, BYTES, 0.06)
        for ratio in ("ratio 2", "adaptive"):
            yield Bar(f"mask_loss 28x28, {ratio}, backward", dtype, "moved / dense gradient", 1.05)
            yield Bar(f"mask_loss 28x28, {ratio}, backward", dtype, "launches", 1)
        name = "mask_predict_loss 256 channels, 28x28, adaptive, forward and backward"
        yield Bar(name, dtype, LARGEST, 0.05, "channels last")


BARS = (*_roi_align(), *_others())

# Time bounds in us that the virtual GPU's prototype found for torchvision's own kernels, on RoIs of one seed; those of
# NMS are the same for all. The virtual GPU has to agree: all ratios above are to its bounds.
PROTOTYPE = {
    "roi_align 7x7, forward": 209,
    "roi_align 14x14, forward": 611,
    "roi_align 7x7, backward": 564,
    "roi_align 14x14, backward": 1194,
    "segmented_nms 10 x 2000, forward": 171,
}
PROTOTYPE_SEED = 4
AGREEING = 0.02


def with_ratios(row: Row, rows: Sequence[Row]) -> Row:
    """The row with its ratios to torchvision's row, among `rows`, of the same case and seed, where there is one."""
    if row.by == TORCHVISION:
        return row
    operation, _, rest = row.case.partition(" ")
    ratios = {}
    for peer in rows:
        if peer.by != TORCHVISION or peer.seed != row.seed or not peer.case.startswith(operation):
            continue
        if operation == "mask_loss":
            if rest.endswith("forward"):
                ratios[BYTES] = row.figures["moved, MB"] / peer.figures["moved, MB"]
        elif operation == "segmented_nms":
            mask_kernel = row.figures["mask kernel, M instructions"]
            ratios[f"mask kernel, {INSTRUCTIONS}"] = mask_kernel / peer.figures["M instructions"]
        elif peer.case == row.case:
            ratios = {name: row.figures[of] / peer.figures[of] for name, of in RATIOS.items()}
    return replace(row, figures={**row.figures, **ratios})


def seen(rows: Sequence[Row]) -> list[Seen]:
    """A line for each bar that the rows are about, with the figure at each seed, and for each of `PROTOTYPE`.

    A row without the figure that a bar is about does not hold it.
    """
    lines = []
    for bar in BARS:
        about = (bar.case, bar.dtype, bar.layout)
        own = [row for row in rows if row.by != TORCHVISION and (row.case, row.dtype, row.layout) == about]
        if own:
            what = f"{bar.case}, {bar.dtype} {bar.layout}: {bar.figure}"
            values = [row.figures.get(bar.figure, math.nan) for row in own]
            lines.append(Seen(what, bar.asked, "  ".join(map(_told, values)), all(map(bar.holds, values))))
    return lines + [_beside_prototype(row) for row in rows if _is_of_prototype(row)]


def _told(value: float) -> str:
    if math.isnan(value):
        return "not known"
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"


def _is_of_prototype(row: Row) -> bool:
    return row.by == TORCHVISION and row.seed == PROTOTYPE_SEED and row.case in PROTOTYPE


def _beside_prototype(row: Row) -> Seen:
    known, found = PROTOTYPE[row.case], row.figures["time bound, us"]
    what = f"torchvision's {row.case}, {row.dtype}: time bound, us"
    return Seen(what, f"{known:,} within {AGREEING:.0%}", f"{found:,.1f}", abs(found / known - 1) <= AGREEING)

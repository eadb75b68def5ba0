"""Figures of our kernels on the virtual GPU: counts and lower bounds of time, no times."""

import kernels
from bench.kernel_figures.cases import Case, both, differentiate
from bench.kernel_figures.checks import WrongResult, check
from bench.kernel_figures.torchvision_counts import DEVICE, counted
from bench.results import Row
from bench.virtual_gpu import Options
from bench.virtual_gpu.intercept import Record, active
from bench.virtual_gpu.roofline import bytes_seconds

OURS = "ours, virtual H100"
# In which results must be the same bits: other orders of warps and CTAs, without the caches, which cost time.
ORDERS = (
    Options(quantum=1, reverse=True, caches=False, races=False),
    Options(quantum=1_000_000, caches=False, races=False),
)


def count(case: Case, orders: tuple[Options, ...] = ORDERS) -> list[Row]:
    """Rows of a case's directions, counted on the virtual GPU.

    Raises:
        WrongResult: a result is not torchvision's, or is not the same bits in another order of warps.
        VirtualGpuError: a kernel did what it must not do.
    """
    inputs = case.inputs()
    others = []
    for options in orders:  # before the recorded run, so that tables that are made once have been made
        with kernels.use("triton"), active(DEVICE, options=options):
            others.append((options, both(case.ours, inputs)))
    with kernels.use("triton"), active(DEVICE) as record:
        outputs = case.ours(inputs)
        split = len(record.steps)
        gradients = differentiate(outputs, inputs)
    parts = {"forward": Record(DEVICE, record.steps[:split]), "backward": Record(DEVICE, record.steps[split:])}
    wanted = check(case, (*outputs, *gradients))
    for options, other in others:
        if not all(a.equal(b) for a, b in zip(other, (*outputs, *gradients), strict=True)):
            raise WrongResult(f"{case.name}: other bits with {options}")
    rows = []
    for direction, least in case.least(inputs).items():
        figures = figures_of(parts[direction], least)
        if case.operation == "segmented_nms" and len(parts[direction].launches) == 2:  # more than a few boxes
            figures |= _nms_figures(parts[direction], len(inputs["scores"]))
        if case.exact:
            unlike = [int((a != b).sum()) for a, b in zip(outputs, wanted, strict=False)]  # gradients aside
            figures["selections unlike torchvision's"] = sum(unlike)
        if case.operation == "mask_loss" and direction == "backward":
            (logits,) = inputs["leaves"]
            dense = logits.numel() * logits.element_size()
            figures["moved / dense gradient"] = 1e6 * figures["moved, MB"] / dense
        if orders:
            figures["orders with the same bits"] = 1 + len(orders)
        config = ", ".join(f"{each.kernel}: {each.config}" for each in parts[direction].launches if each.config)
        rows.append(_row(case, direction, OURS, figures, config))
    return rows


def figures_of(record: Record, least: int) -> dict[str, float]:
    """What a path did: its launches, and the operations of PyTorch between them with their bytes."""
    counters = record.counters
    return {
        "time bound, us": 1e6 * record.seconds,
        "of it PyTorch, us": 1e6 * bytes_seconds(record.operation_bytes, record.device),
        **counted(counters),
        "DRAM / least": (counters.dram_bytes + record.operation_bytes) / least,
        "least, MB": least / 1e6,
        "registers": max((each.resources.registers for each in record.launches), default=0),
        "spilled bytes": sum(each.resources.local for each in record.launches),
        "launches": len(record.launches),
        "PyTorch operations": len(record.operations),
        "PyTorch, MB": record.operation_bytes / 1e6,
        "moved, MB": (counters.dram_bytes + record.operation_bytes) / 1e6,
        "waits": sum(each.waits for each in record.operations),
    }


def _nms_figures(record: Record, segments: int) -> dict[str, float]:
    """The mask kernel is the first launch, the reduction of each segment the last."""
    mask, reduction = record.launches[0], record.launches[-1]
    per_segment = reduction.counters.warp_instructions / segments
    return {
        "mask kernel, M instructions": mask.counters.warp_instructions / 1e6,
        "mask kernel, registers": mask.resources.registers,
        "reduction, instructions a segment": max(per_segment, reduction.counters.longest_warp),
    }


def _row(case: Case, direction: str, by: str, figures: dict[str, float], config: str) -> Row:
    return Row(f"{case.name}, {direction}", case.dtype_name, case.layout, case.seed, by, config, figures)

"""Runs this project's own launchers on the virtual GPU.

with kernels.use("triton"), virtual_gpu.active() as record:
    pooled = kernels.roi_align(features, boxes, 7)  # CPU tensors
print(record.summary())
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any
from unittest import mock

import triton
from triton.runtime.autotuner import Autotuner

from bench.virtual_gpu.counters import Counters
from bench.virtual_gpu.device import H100, VirtualGpu
from bench.virtual_gpu.launch import Launch, Options
from bench.virtual_gpu.poison import PATTERN
from bench.virtual_gpu.roofline import Roofline, bytes_seconds, roofline
from bench.virtual_gpu.toolkit import Resources
from bench.virtual_gpu.torch_operations import TorchOperation, Watch
from bench.virtual_gpu.triton_kernels import compile_triton, plain_kernel
from kernels.gpu import tuning

Choice = Callable[[str, list[triton.Config]], triton.Config]


@dataclass(frozen=True)
class RecordedLaunch:
    """A launch of one of our kernels; `config` is None where there is nothing to tune."""

    kernel: str
    config: triton.Config | None
    launch: Launch
    resources: Resources
    roofline: Roofline
    ptx: str = field(repr=False)

    @property
    def counters(self) -> Counters:
        return self.launch.counters

    def line(self) -> str:
        """What matters most, for people."""
        counters = self.counters
        return (
            f"{self.kernel:32s} {self.roofline.seconds * 1e6:10.2f} us by {self.roofline.limiter}: "
            f"{counters.warp_instructions / 1e6:.3f} M instructions, {counters.dram_bytes / 1e6:.2f} MB of "
            f"{counters.least_bytes / 1e6:.2f}, longest warp {counters.longest_warp}, "
            f"{self.resources.registers} registers, grid {self.launch.grid}, {self.config}"
        )


@dataclass
class Record:
    """What ran inside the `with` block, in its order."""

    device: VirtualGpu
    steps: list[RecordedLaunch | TorchOperation] = field(default_factory=list)

    @property
    def launches(self) -> list[RecordedLaunch]:
        return [step for step in self.steps if isinstance(step, RecordedLaunch)]

    @property
    def operations(self) -> list[TorchOperation]:
        """Operations of PyTorch that moved bytes."""
        return [step for step in self.steps if isinstance(step, TorchOperation)]

    @property
    def counters(self) -> Counters:
        """Of all launches together."""
        return sum((launch.counters for launch in self.launches), Counters())

    @property
    def operation_bytes(self) -> int:
        """Bytes that PyTorch's operations read and wrote."""
        return sum(each.bytes_read + each.bytes_written for each in self.operations)

    @property
    def seconds(self) -> float:
        """The lower bound for everything: each launch's, and the bytes of PyTorch's operations."""
        return sum(each.roofline.seconds for each in self.launches) + bytes_seconds(self.operation_bytes, self.device)

    def summary(self) -> str:
        """A line for each launch, and one for the operations of PyTorch between two."""
        lines = []
        for launches, steps in groupby(self.steps, lambda step: isinstance(step, RecordedLaunch)):
            if launches:
                lines += [step.line() for step in steps if isinstance(step, RecordedLaunch)]
                continue
            operations = [step for step in steps if isinstance(step, TorchOperation)]
            moved = sum(each.bytes_read + each.bytes_written for each in operations)
            times = Counter(each.name + (" (waits)" if each.waits else "") for each in operations)
            names = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in times.items())
            lines.append(f"torch {bytes_seconds(moved, self.device) * 1e6:36.2f} us for {moved / 1e6:.3f} MB: {names}")
        return "\n".join(lines)


def _first(_: str, configs: list[triton.Config]) -> triton.Config:
    return configs[0]


@contextmanager
def active(
    device: VirtualGpu = H100,
    *,
    options: Options | None = None,
    choose: Choice = _first,
    check: bool = True,
    pattern: int | None = PATTERN,
) -> Iterator[Record]:
    """While active, the launchers in `kernels.gpu` run on the virtual GPU, on CPU tensors.

    Choose them with `kernels.use("triton")`. Tensors that are allocated inside start as poison (see `poison`).

    Args:
        device: what to compile for and whose caches to model.
        options: how to run each launch.
        choose: picks a tuned kernel's configuration, given its name and those that suit the launch, the default first.
        check: raise at the first launch with a fault; if not, look at `record.launches[...].launch.faults`.
        pattern: the byte of the poison; None for none.

    Yields:
        The record, which grows with every launch and every operation of PyTorch.

    Raises:
        VirtualGpuError: a launch had a fault.
        NotImplementedError: a kernel has an instruction that is not modelled.
        RuntimeError: Triton's interpreter is on, so that nothing is compiled.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("the virtual GPU runs compiled kernels: start the process without TRITON_INTERPRET=1")
    record = Record(device)

    def launch(kernel: Any, grid: Any, tensors: Sequence[Any], **arguments: Any) -> None:
        function = plain_kernel(kernel)
        config = None
        if isinstance(kernel, Autotuner):
            config = choose(function.__name__, tuning.pruned_configs(kernel, tensors, arguments))
        keywords = {**arguments, **(config.all_kwargs() if config else {})}
        compiled = compile_triton(function, tensors, keywords, device.architecture)
        if callable(grid):
            grid = grid({**dict(zip(function.arg_names, tensors, strict=False)), **keywords})
        result = compiled.run(grid, device=device, options=options)
        record.steps.append(
            RecordedLaunch(
                compiled.name,
                config,
                result,
                compiled.resources,
                roofline(result.counters, device),
                compiled.ptx,
            )
        )
        if check:
            result.check()

    with mock.patch.object(tuning, "launch", launch), Watch(record.steps.append, pattern):
        yield record

"""The outcome of each case of `python -m bench verify`; of those that held, kept from an earlier run."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bench.cache import cached
from bench.error_rule import Comparison, Norm
from bench.verification.case import Finding, verify_case
from bench.verification.operations import OPERATIONS
from bench.verification.places import Place
from bench.verification.scenes import Scene

BENCH = Path(__file__).parent.parent
# What an outcome depends on.
SOURCES = (
    BENCH.parent / "kernels",
    *(BENCH / name for name in ("verification", "virtual_gpu", "peers", "cases.py", "error_rule.py")),
)
PACKAGES = ("torch", "triton", "torchvision", "numpy", "pycocotools")


@dataclass(frozen=True)
class Outcome:
    """An operation with a dtype, a layout and a shape, and what was found.

    Attributes:
        seconds: that it took. remembered: whether that was in an earlier run.
    """

    operation: str
    dtype: str
    layout: str
    shape: str
    seconds: float
    findings: tuple[Finding, ...]
    remembered: bool = False

    @property
    def name(self) -> str:
        return f"{self.operation}, {self.dtype}, {self.layout}, {self.shape}"

    @property
    def breaches(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.holds]

    def share(self, side: str, binding: bool = True) -> float | None:
        """The largest error of a side as a share of what is allowed; None if the side was not judged."""
        chosen = [each for each in self.findings if each.side == side and each.binding == binding]
        return max((each.comparison.share for each in chosen), default=None)


def verify_one(operation: str, dtype: str, layout: str, scene: Scene, here: Place, fresh: bool = False) -> Outcome:
    """A case in a place: what is on the disk if it held with these sources and versions, else made now.

    What ran on a real GPU is not kept: it depends on the machine's driver and tuning.
    """

    def make() -> dict[str, Any]:
        start = time.perf_counter()
        problem = OPERATIONS[operation][0](scene, getattr(torch, dtype), layout)
        oracle: Literal["eager", "reference"] = "eager" if scene.full else "reference"
        findings = verify_case(problem, getattr(torch, dtype), here, oracle)
        return asdict(Outcome(operation, dtype, layout, scene.name, time.perf_counter() - start, tuple(findings)))

    def keep(made: Mapping[str, Any]) -> bool:
        return here.device == "cpu" and not _outcome(made).breaches

    name = f"verify {here.describe()}, {operation}, {dtype}, {layout}, {scene}"
    made, remembered = cached(name, SOURCES, PACKAGES, make, fresh, keep)
    return _outcome({**made, "remembered": remembered})


def _outcome(made: Mapping[str, Any]) -> Outcome:
    return Outcome(**{**made, "findings": tuple(_finding(**each) for each in made["findings"])})


def _finding(comparison: Mapping[str, Any], **others: Any) -> Finding:
    norms = tuple(Norm(**each) for each in comparison["norms"])
    return Finding(**others, comparison=Comparison(**{**comparison, "norms": norms}))

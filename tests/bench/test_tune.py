"""`python -m bench tune`: refuses without a GPU; its table is found by the launches that it was measured for.

Kernels do nothing here, and times are made up: the last configuration that fits is the fastest.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.runtime.autotuner import Autotuner

import kernels
from bench.cases import Pyramid
from bench.compiled.launches import name_of, tuned_kernels
from bench.tune import cases, main, measured
from kernels.gpu import choices, tuning

SMALL = Pyramid(images=2, height=64, width=96, channels=64)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "no GPU" in capsys.readouterr().out


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(choices, "_device", lambda: {"device": "A card", "architecture": 90, "triton": "3.8.0"})
    monkeypatch.setattr(choices, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setenv("MRCNN_TUNING_FOLDER", str(tmp_path / "here"))
    monkeypatch.setattr(tuning, "pinned", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr("triton.runtime.jit.KernelInterface.__getitem__", lambda kernel, grid: lambda *_, **__: None)


def run_all() -> None:
    with kernels.use("triton"):
        for case in cases(torch.device("cpu"), SMALL, (20,), 10):
            case.run()


def made_up(
    kernel: Autotuner, grid: Any, tensors: Any, arguments: Mapping[str, Any], configs: Sequence[triton.Config]
) -> dict[triton.Config, float]:
    return {config: 1.0 / (1 + place) for place, config in enumerate(configs)}


@pytest.mark.compiled
def test_the_table_is_found(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    all_kernels = tuned_kernels()
    for kernel in all_kernels:
        monkeypatch.setattr(kernel, "cache", {})
    path = choices.SHIPPED / choices.file_name()
    monkeypatch.setattr(tuning, "measure", made_up)
    with measured(path) as rows:
        run_all()
    assert {row.kernel for row in rows} == {name_of(kernel) for kernel in all_kernels}
    assert len({(row.kernel, row.key) for row in rows}) == len(rows)
    assert all(row.fastest < row.default for row in rows)
    table = json.loads(path.read_text())
    assert sum(len(keys) for keys in table["choices"].values()) == len(rows)

    def never(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(tuning, "measure", never)
    run_all()
    chosen = {f"{name_of(kernel)} {config}" for kernel in all_kernels for config in kernel.cache.values()}
    assert chosen >= {f"{row.kernel} {row.config}" for row in rows}

"""The parts that run no kernel: PTX's syntax, occupancy, bounds of time, building, arguments, PyTorch's operations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from bench.virtual_gpu import H100, T4, Counters, has_compiler, native, roofline, triton_kernels, unwritten
from bench.virtual_gpu.intercept import active
from bench.virtual_gpu.ptx import parse, split_operands
from bench.virtual_gpu.torch_operations import TorchOperation, Watch
from bench.virtual_gpu.triton_kernels import Specialized, compile_triton

pytestmark = pytest.mark.compiled

MODULE = """
.version 8.8
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];   // a comment; with { braces }
.visible .entry other(.param .u32 other_param_0) { ret; }
.visible .entry sample(
    .param .u64 .ptr .global .align 1 sample_param_0, /* two
    lines */ .param .u8 sample_param_1,
    .param .align 16 .b8 sample_param_2[20],
    .param .f32 sample_param_3
)
.reqntid 64, 2
.minnctapersm 2
{
    .reg .pred %p<3>;
    .reg .b32 %r<2>, %tmp;
    .shared .align 8 .b8 local_tile[24];
    .loc 1 5 3
$L__BB0_0:
    mov.u32 %r0, %tid.x;
    @!%p1 bra $L__BB0_2;
    { .reg .b64 %r0; mov.b64 %r0, local_tile; }
    ld.shared.v2.b32 {%r0, %r1}, [global_smem + 8];
$L__BB0_2:
    bar.sync 0;
    ret;
}
"""


def test_parsing() -> None:
    kernel = parse(MODULE, "sample")
    places = [(each.name[-1], each.type, each.offset, each.size) for each in kernel.parameters]
    assert places == [("0", "u64", 0, 8), ("1", "u8", 8, 1), ("2", "b8", 16, 20), ("3", "f32", 36, 4)]
    assert kernel.parameter_bytes == 40
    assert kernel.max_threads == 128
    assert kernel.shared == {"local_tile": 0, "global_smem": 32}
    assert kernel.shared_bytes == 32
    assert kernel.labels == {"$L__BB0_0": 0, "$L__BB0_2": 2}
    assert [[each.opcode for each in block] for block in kernel.blocks] == [
        ["mov.u32", "bra"],
        ["mov.b64", "ld.shared.v2.b32"],
        ["bar.sync"],
        ["ret"],
        ["ret"],
    ]
    outer, inner = kernel.blocks[0][0], kernel.blocks[1][0]
    registers = [kernel.register("%r0", statement.scope) for statement in (outer, inner)]
    assert [each.bytes for each in registers if each] == [4, 8]
    assert kernel.register("%r9", (0,)) is None
    assert kernel.blocks[0][1].guard == "!%p1"
    assert split_operands("{%r0, %r1}, [%rd1 + 4], 0f3F800000") == ("{%r0, %r1}", "[%rd1 + 4]", "0f3F800000")
    with pytest.raises(KeyError):
        parse(MODULE, "absent")
    with pytest.raises(NotImplementedError, match="local memory"):
        parse(".entry k() { .local .align 8 .b8 depot[16]; ret; }", "k")


def test_occupancy() -> None:
    assert H100.resident_ctas(512) == 4
    assert H100.resident_ctas(32) == 32
    assert H100.resident_ctas(256, registers=128) == 2
    assert H100.resident_ctas(128, registers=33) == 12  # 33 registers take 5 x 256 of a warp
    assert H100.resident_ctas(128, shared_bytes=100 << 10) == 2
    assert H100.resident_ctas(1024, registers=255) == 1
    assert T4.resident_ctas(512) == 2


def test_roofline() -> None:
    bound = roofline(Counters(warp_instructions=132 * 4 * 1750, l1_lines=132 * 1750, dram_read_sectors=3350 * 1000))
    assert bound.issue == pytest.approx(1e-6)
    assert bound.l1 == pytest.approx(1e-6)
    assert bound.dram == pytest.approx(32e-6)
    assert bound.limiter == "dram"
    assert bound.seconds == bound.dram
    assert roofline(Counters(atomic_sectors=80 * 1750)).seconds == pytest.approx(1e-6)
    assert roofline(Counters(shared_wavefronts=132 * 1750)).limiter == "shared"
    both = Counters(warp_instructions=1, longest_warp=5) + Counters(warp_instructions=2, longest_warp=3)
    assert both == Counters(warp_instructions=3, longest_warp=5)


def test_building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRCNN_VIRTUAL_GPU_CACHE", str(tmp_path / "cache"))
    assert native.cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not has_compiler()
    with pytest.raises(RuntimeError, match=r"g\+\+ or clang\+\+"):
        native._built()
    failing = tmp_path / "failing"
    failing.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho broken >&2\nexit 1\n')
    failing.chmod(0o755)
    monkeypatch.setenv("CXX", str(failing))
    assert has_compiler()
    with pytest.raises(RuntimeError, match="broken"):
        native._built()
    assert not list((tmp_path / "cache").iterdir())


@triton.jit
def tuple_kernel(pointers, numbers, one, even, out, nothing, flag: tl.constexpr):
    value = tl.load(pointers[0]) + tl.load(pointers[1]) * numbers[0] + numbers[1][1] + one * even
    if nothing is None:
        value += flag
    tl.store(out, value)


@pytest.mark.parametrize("even", [16, 7])
def test_arguments_of_a_kernel(even: int) -> None:
    """Tuples are taken apart; None, ones and constants vanish; multiples of 16 and floats stay."""
    a, b, out = torch.tensor([2.0]), torch.tensor([3.0]), torch.zeros(1)
    kernel = compile_triton(tuple_kernel, ((a, b), (10.0, (1, 5)), 1, even, out, None), {"flag": 100, "num_warps": 1})
    assert [type(each).__name__ for each in kernel.leaves] == ["Tensor", "Tensor", "float", "int", "int", "Tensor"]
    kernel.run((1,)).check()
    assert out.item() == 2 + 30 + 5 + even + 100
    assert kernel.threads == 32
    assert kernel.resources.registers > 0


def recorded(function: Any) -> list[TorchOperation]:
    steps: list[TorchOperation] = []
    with Watch(steps.append):
        function()
    return steps


def test_a_kernel_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each specialisation, of which the latest are kept; arguments are each launch's own."""
    compiled = []

    def count(specialized: Specialized, plain: Any = Specialized.compile) -> Any:
        compiled.append(specialized.constants)
        return plain(specialized)

    monkeypatch.setattr(Specialized, "compile", count)
    monkeypatch.setattr(triton_kernels, "_compiled", {})
    monkeypatch.setattr(triton_kernels, "COMPILED_KEPT", 2)

    def seen(flag: int, value: float) -> float:
        a, b, out = torch.full((1,), value), torch.tensor([2.0]), torch.zeros(1)
        compile_triton(tuple_kernel, ((a, b), (1.0, (0, 0)), 1, 0, out, None), {"flag": flag, "num_warps": 1}).run((1,))
        return out.item()

    assert [seen(100, 1.0), seen(100, 5.0), seen(200, 5.0), seen(100, 7.0)] == [103, 107, 207, 109]
    assert len(compiled) == 2
    seen(300, 1.0)
    assert [seen(200, 1.0), seen(100, 1.0)] == [203, 103]
    assert len(compiled) == 4


def test_pytorchs_operations() -> None:
    x, index = torch.zeros((64, 100)), torch.zeros((64, 10), dtype=torch.int64)
    size = 4 * 6400
    for function, wanted in [
        (lambda: x + 1, ("add", size, size)),
        (lambda: x.add_(1), ("add_", size, size)),
        (lambda: x + x, ("add", size, size)),
        (lambda: x.fill_(2), ("fill_", 0, size)),
        (lambda: x[:32].copy_(x[32:]), ("copy_", size // 2, size // 2)),
        (lambda: x.to(torch.float16), ("_to_copy", size, size // 2)),
        (lambda: x.gather(1, index), ("gather", 4 * 640 + 8 * 640, 4 * 640)),
        (lambda: torch.zeros(50), ("zeros", 0, 200)),
        (lambda: x[:1].expand(64, 100) * 2, ("mul", 400, size)),
        (lambda: x.cumsum(1), ("cumsum", size, size)),
    ]:
        (seen,) = recorded(function)
        assert (seen.name, seen.bytes_read, seen.bytes_written, seen.waits) == (*wanted, False)
    assert recorded(lambda: x.t()[3:].view(-1, 2, 32)[0]) == []
    assert recorded(lambda: x.sort(1)) == [TorchOperation("sort", size, size + 2 * size)]
    assert recorded(lambda: int(index[0, 0])) == [TorchOperation("item", 8, 0, waits=True)]


NUMBERS, MASK, PLACES = torch.arange(6.0), torch.arange(6) > 2, torch.tensor([3, 0])


@pytest.mark.parametrize(
    ("function", "waits"),
    [
        (lambda: bool(MASK.any()), 1),
        (lambda: torch.nonzero(MASK), 1),
        (lambda: torch.where(MASK), 1),
        (lambda: NUMBERS[:0].nonzero(), 1),
        (lambda: NUMBERS[MASK], 1),
        (lambda: torch.masked_select(NUMBERS, MASK), 1),
        (lambda: NUMBERS.index_put((MASK,), NUMBERS[:3]), 1),
        (lambda: NUMBERS[:, None].repeat(1, 2).index_put_((MASK, torch.tensor(0)), torch.tensor(2.0)), 1),
        (lambda: torch.unique(NUMBERS), 1),
        (lambda: torch.unique(NUMBERS[:, None], dim=0), 1),
        (lambda: torch.unique_consecutive(PLACES, return_counts=True), 1),
        (lambda: torch.bincount(PLACES), 1),
        (lambda: torch.repeat_interleave(NUMBERS, PLACES.repeat(3)), 1),
        (lambda: torch.equal(NUMBERS, NUMBERS), 1),
        (lambda: NUMBERS.cpu(), 1),
        (lambda: NUMBERS.to("cpu"), 1),
        (lambda: NUMBERS.to(device="cpu"), 1),
        (lambda: PLACES.tolist(), 1),
        # All of these a GPU does by itself.
        (lambda: NUMBERS[PLACES], 0),
        (lambda: NUMBERS.index_put((PLACES,), NUMBERS[:2]), 0),
        (lambda: NUMBERS.clone().index_put_((MASK,), torch.tensor(2.0)), 0),  # as x[mask] = 2.0
        (lambda: torch.where(MASK, NUMBERS, 0.0), 0),
        (lambda: NUMBERS.masked_fill(MASK, 2.0), 0),
        (lambda: torch.repeat_interleave(NUMBERS, PLACES.repeat(3), output_size=9), 0),
        (lambda: NUMBERS.repeat_interleave(3), 0),
        (lambda: NUMBERS.to(NUMBERS.device, torch.float16), 0),
        (lambda: NUMBERS.sort(stable=True).values.cumsum(0).topk(2), 0),
    ],
)
def test_what_waits_for_the_gpu(function: Callable[[], Any], waits: int) -> None:
    assert sum(each.waits for each in recorded(function)) == waits


@torch.library.custom_op("mrcnn_tests::largest", mutates_args=())
def largest(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(max(x.cpu().mul(2).tolist()))


def test_waits_show_inside_custom_operations_once_each() -> None:
    waits = [each.name for each in recorded(lambda: largest(NUMBERS)) if each.waits]
    assert waits == ["cpu", "tolist"]
    with pytest.raises(ZeroDivisionError):
        recorded(lambda: 1 // 0)
    largest(NUMBERS)  # nobody watches any more
    assert torch.overrides._get_current_function_mode() is None


def test_what_is_allocated_inside_is_poison() -> None:
    with active():
        made = [torch.empty(5), torch.zeros(3).new_empty(4), torch.empty((2, 3), dtype=torch.int64), torch.zeros(3)]
    assert [bool(unwritten(each).all()) for each in made] == [True, True, True, False]
    assert not bool(unwritten(made[3]).any())
    with active(pattern=0x5A):
        other = torch.empty(5, dtype=torch.int32)
    assert not bool(unwritten(other).any())
    assert bool(unwritten(other, 0x5A).all())


def test_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"), active():
        pass

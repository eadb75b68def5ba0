"""Hand-written PTX for a few instructions, run on every element of some tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.virtual_gpu import Launch, Options, assemble, run

THREADS = 64


def kernel_text(body: str, parameters: Sequence[str] = (), declarations: str = "") -> str:
    """A module with one kernel `test`; `parameters` are types. Registers %p, %h, %r, %d of every width are there."""
    listed = ",\n".join(f".param .{kind} test_param_{number}" for number, kind in enumerate(parameters))
    return f"""
        .version 8.8
        .target sm_90a
        .address_size 64
        {declarations}
        .visible .entry test({listed})
        {{
            .reg .pred %p<16>;
            .reg .b16 %h<32>;
            .reg .b32 %r<64>;
            .reg .b64 %d<64>;
            .reg .b128 %q<4>;
            {body}
            ret;
        }}
    """


def execute(
    body: str,
    arguments: Sequence[Any] = (),
    grid: Sequence[int] = (1,),
    threads: int | Sequence[int] = 32,
    declarations: str = "",
    options: Options | None = None,
    **keywords: Any,
) -> Launch:
    """Runs a body whose parameters are the arguments, in order: tensors are .u64, integers .u32, floats .f32."""
    kinds = ["u64" if isinstance(each, Tensor) else "f32" if isinstance(each, float) else "u32" for each in arguments]
    program = assemble(kernel_text(body, kinds, declarations), "test")
    return run(program, grid, threads, arguments, options=options, **keywords)


def elementwise(
    body: str, inputs: Sequence[Tensor], outputs: Sequence[torch.dtype], options: Options | None = None
) -> list[Tensor]:
    """Runs a body on each element: inputs are in %x0, %x1, ... as bits, results are expected in %y0, %y1, ...

    Args:
        inputs: 1-D, of one length.
        outputs: the dtype of each result.
    """
    count = inputs[0].numel()
    results = [torch.zeros(count, dtype=dtype) for dtype in outputs]
    lines = [
        "mov.u32 %r0, %ctaid.x; mov.u32 %r1, %ntid.x; mov.u32 %r2, %tid.x; mad.lo.s32 %r3, %r0, %r1, %r2;",
        f"setp.ge.u32 %p0, %r3, {count}; @%p0 ret;",
    ]
    stores = []
    for name, tensors in (("x", inputs), ("y", results)):
        for number, tensor in enumerate(tensors):
            size = tensor.element_size()
            parameter = number + (len(inputs) if name == "y" else 0)
            memory, register = f"b{8 * size}", f"b{max(16, 8 * size)}"
            lines.append(
                f".reg .{register} %{name}{number}; .reg .b64 %{name}p{number}; "
                f"ld.param.u64 %{name}p{number}, [test_param_{parameter}]; "
                f"mad.wide.u32 %{name}p{number}, %r3, {size}, %{name}p{number};"
            )
            if name == "x":
                lines.append(f"ld.global.{memory} %x{number}, [%xp{number}];")
            else:
                stores.append(f"st.global.{memory} [%yp{number}], %y{number};")
    text = "\n".join([*lines, body, *stores])
    execute(text, [*inputs, *results], (-(-count // THREADS),), THREADS, options=options).check()
    return results

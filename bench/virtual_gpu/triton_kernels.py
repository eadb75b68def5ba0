"""Triton kernels compiled ahead of time, specialised as a launch with these arguments would be, and run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import create_function_from_signature

from bench.virtual_gpu.device import H100, VirtualGpu
from bench.virtual_gpu.launch import Launch, Options, run
from bench.virtual_gpu.program import Program, assemble
from bench.virtual_gpu.toolkit import Resources, resources

# Triton appends pointers to its own scratch memory, of which these kernels use none.
SCRATCH_POINTERS = 2


@dataclass(frozen=True)
class CompiledTriton:
    """A kernel compiled for one specialisation.

    Attributes:
        leaves: the arguments that are left as parameters, tuples taken apart, constants gone.
    """

    name: str
    compiled: CompiledKernel
    program: Program
    leaves: tuple[Any, ...]
    resources: Resources

    @property
    def ptx(self) -> str:
        return str(self.compiled.asm["ptx"])

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return self.program.kernel.max_threads or 32 * int(self.compiled.metadata.num_warps)

    def run(self, grid: Sequence[int], *, device: VirtualGpu = H100, options: Options | None = None) -> Launch:
        """Runs it with the arguments that it was compiled for; see `launch.run`."""
        return run(
            self.program,
            grid,
            self.threads,
            [*self.leaves, *[None] * SCRATCH_POINTERS],
            shared_bytes=int(self.compiled.metadata.shared),
            registers=self.resources.registers,
            device=device,
            options=options,
        )


def plain_kernel(kernel: Any) -> triton.JITFunction:
    """The jit function inside autotuners and heuristics."""
    while not isinstance(kernel, triton.JITFunction):
        kernel = kernel.fn
    return kernel


def compile_triton(
    kernel: Any, arguments: Sequence[Any], keywords: Mapping[str, Any] | None = None, architecture: int = 90
) -> CompiledTriton:
    """Compiles a kernel as a launch `kernel[grid](*arguments, **keywords)` on the architecture would.

    Args:
        kernel: a jit function, or an autotuner or heuristics around one, whose configurations are not applied.
        arguments: leading arguments, CPU tensors for pointers.
        keywords: other arguments by name, and compiler options such as num_warps.
        architecture: compute capability times ten.

    Raises:
        NotImplementedError: the PTX has an instruction that the virtual GPU does not model.
    """
    function = plain_kernel(kernel)
    named = {name: value for name, value in (keywords or {}).items() if name in function.arg_names}
    options = {name: value for name, value in (keywords or {}).items() if name not in function.arg_names}
    target = GPUTarget("cuda", architecture, 32)
    backend = make_backend(target)
    bind = create_function_from_signature(function.signature, function.params, backend)
    bound, specialization, bound_options = bind(*arguments, **named)
    _, signature, constants, attributes = function._pack_args(backend, named, bound, specialization, bound_options)
    source = ASTSource(function, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=options)
    if getattr(compiled.metadata, "global_scratch_size", 0):
        raise NotImplementedError(f"{function.__name__} needs scratch memory")
    program = assemble(str(compiled.asm["ptx"]), str(compiled.metadata.name))
    leaves = tuple(_leaves(tuple(bound.values()), constants))
    return CompiledTriton(str(function.__name__), compiled, program, leaves, resources(compiled.asm["cubin"]))


def _leaves(
    values: Sequence[Any], constants: Mapping[tuple[int, ...], Any], path: tuple[int, ...] = ()
) -> Iterator[Any]:
    """Arguments that are no constants, in the order of parameters."""
    for number, value in enumerate(values):
        here = (*path, number)
        if here in constants:
            continue
        if isinstance(value, tuple):
            yield from _leaves(value, constants, here)
        else:
            yield value

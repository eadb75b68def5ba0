"""Triton kernels compiled ahead of time, specialised as a launch with these arguments would be, and run."""

import functools
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

# A kernel that is launched again is not read from the disk and taken apart again.
_assembled = functools.lru_cache(maxsize=128)(assemble)
_resources = functools.lru_cache(maxsize=1024)(resources)
_compiled: dict[tuple[str, str, str], CompiledKernel] = {}
COMPILED_KEPT = 128

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


@dataclass(frozen=True)
class Specialized:
    """A kernel with what a launch settles before it is compiled.

    Attributes:
        bound: every argument by name. constants: those that are compiled in, by their path among the arguments.
    """

    source: ASTSource
    target: GPUTarget
    options: dict[str, Any]
    bound: dict[str, Any]
    constants: Mapping[tuple[int, ...], Any]

    def compile(self) -> CompiledKernel:
        return triton.compile(self.source, target=self.target, options=self.options)

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal where compiling gives the same."""
        return self.source.hash(), str(sorted(self.options.items())), str(self.target)

    def parameters(self) -> list[tuple[str, Any]]:
        """Name and value of the argument that each of the compiled kernel's parameters is, or is a part of."""
        names = list(self.bound)
        found = _leaves(tuple(self.bound.values()), self.constants)
        return [(names[path[0]], value) for path, value in found]


def specialize(
    function: triton.JITFunction, arguments: Sequence[Any], keywords: Mapping[str, Any], target: GPUTarget
) -> Specialized:
    """A launch `function[grid](*arguments, **keywords)` on the target, up to compiling; see `compile_triton`."""
    named = {name: value for name, value in keywords.items() if name in function.arg_names}
    options = {name: value for name, value in keywords.items() if name not in function.arg_names}
    backend, bind = _binding(function, target)
    bound, specialization, bound_options = bind(*arguments, **named)
    _, signature, constants, attributes = function._pack_args(backend, named, bound, specialization, bound_options)
    return Specialized(ASTSource(function, signature, constants, attributes), target, options, bound, constants)


@functools.lru_cache(maxsize=128)
def _binding(function: triton.JITFunction, target: GPUTarget) -> tuple[Any, Any]:
    """The backend, and what binds and specialises arguments."""
    backend = make_backend(target)
    return backend, create_function_from_signature(function.signature, function.params, backend)


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
    specialized = specialize(function, arguments, keywords or {}, GPUTarget("cuda", architecture, 32))
    compiled = _compile_once(specialized)
    if getattr(compiled.metadata, "global_scratch_size", 0):
        raise NotImplementedError(f"{function.__name__} needs scratch memory")
    leaves = tuple(value for _, value in specialized.parameters())
    program = _assembled(str(compiled.asm["ptx"]), str(compiled.metadata.name))
    return CompiledTriton(str(function.__name__), compiled, program, leaves, _resources(compiled.asm["cubin"]))


def _compile_once(specialized: Specialized) -> CompiledKernel:
    """Compiled, or what was: the oldest go, and no arguments are kept."""
    key = specialized.key
    if key not in _compiled:
        while len(_compiled) >= COMPILED_KEPT:
            del _compiled[next(iter(_compiled))]
        _compiled[key] = specialized.compile()
    return _compiled[key]


def _leaves(
    values: Sequence[Any], constants: Mapping[tuple[int, ...], Any], path: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Arguments that are no constants, with their paths, in the order of parameters."""
    for number, value in enumerate(values):
        here = (*path, number)
        if here in constants:
            continue
        if isinstance(value, tuple):
            yield from _leaves(value, constants, here)
        else:
            yield here, value

"""Compiles recorded launches with no GPU and no driver, specialised as the launch would be."""

from triton.compiler import CompiledKernel

from bench.compiled.launches import AMPERE as AMPERE
from bench.compiled.launches import HOPPER as HOPPER
from bench.compiled.launches import MI300 as MI300
from bench.compiled.launches import Launch as Launch
from bench.compiled.launches import launches_of as launches_of
from bench.virtual_gpu import toolkit


def resources(kernel: CompiledKernel) -> dict[str, int]:
    """Registers (REG) and bytes of stack (STACK), shared (SHARED) and local memory (LOCAL)."""
    found = toolkit.resources(kernel.asm["cubin"])
    return {"REG": found.registers, "STACK": found.stack, "SHARED": found.shared, "LOCAL": found.local}

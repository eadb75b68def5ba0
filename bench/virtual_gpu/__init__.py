"""Runs compiled GPU kernels on the CPU and counts what they do; see README.md."""

from bench.virtual_gpu.counters import Counters, Fault, Site
from bench.virtual_gpu.device import A100, H100, T4, VirtualGpu
from bench.virtual_gpu.intercept import Record, active
from bench.virtual_gpu.launch import Launch, Options, VirtualGpuError, interleavings, run
from bench.virtual_gpu.native import has_compiler
from bench.virtual_gpu.poison import poison, unwritten
from bench.virtual_gpu.program import Program, assemble
from bench.virtual_gpu.roofline import Roofline, roofline
from bench.virtual_gpu.triton_kernels import compile_triton

__all__ = [
    "A100",
    "H100",
    "T4",
    "Counters",
    "Fault",
    "Launch",
    "Options",
    "Program",
    "Record",
    "Roofline",
    "Site",
    "VirtualGpu",
    "VirtualGpuError",
    "active",
    "assemble",
    "compile_triton",
    "has_compiler",
    "interleavings",
    "poison",
    "roofline",
    "run",
    "unwritten",
]

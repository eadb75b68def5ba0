"""log(1 + x) by the function that kernels share, beside numpy's."""

import numpy as np
import torch
import triton
import triton.language as tl

from kernels.gpu import tuning
from kernels.gpu.language import log1p


@triton.jit
def _log1p_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, log1p(tl.load(x_ptr + at)))


def check_log1p(dtype: torch.dtype) -> None:
    """From 0 to 1, and down to the smallest normal numbers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1024, generator=generator, dtype=torch.float64).to(dtype)
    x[:512] **= torch.linspace(1, 120, 512, dtype=torch.float64).to(dtype)
    x[-2:] = torch.tensor([0.0, 1.0])
    out = torch.full_like(x, float("nan"))
    tuning.launch(_log1p_kernel, (8,), [x, out], BLOCK=128)
    true = torch.from_numpy(np.log1p(x.double().numpy().astype(np.longdouble)).astype(np.float64))
    assert ((out.double() - true).abs() <= 2 * torch.finfo(dtype).eps * true + torch.finfo(dtype).tiny).all()

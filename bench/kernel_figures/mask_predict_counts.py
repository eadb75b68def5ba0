"""Whether `mask_predict_loss` makes logits of all classes anywhere, forward or backward."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kernels
from bench.cases import Workload
from bench.kernel_figures.cases import both
from bench.kernel_figures.cases.mask_head import mask_predict_loss
from bench.kernel_figures.checks import check
from bench.kernel_figures.counts import OURS
from bench.kernel_figures.torchvision_counts import DEVICE
from bench.results import Row
from bench.virtual_gpu import Options
from bench.virtual_gpu.intercept import active

FIGURE = "largest tensor made / logits of all classes"


class Made(TorchDispatchMode):
    """Shapes of all tensors that operations of PyTorch give inside the `with` block, views and empty ones too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self.shapes |= {tuple(each.shape) for each in tree_leaves(results) if isinstance(each, Tensor)}
        return results


def count_mask_predict_loss(dtype: torch.dtype, seed: int, workload: Workload) -> Row:
    """How many elements the largest tensor has that is made on the way, beside logits of all classes.

    Kernels write into tensors that PyTorch has made. Those of the shape of something that was given, as gradients are,
    do not count.

    Raises:
        WrongResult: it differs from a convolution and torchvision's loss.
    """
    case = mask_predict_loss(dtype, seed, workload)
    inputs, made = case.inputs(), Made()
    # In this order, so that what the virtual GPU's own watch sees inside our operations goes on to this one.
    with kernels.use("triton"), made, active(DEVICE, options=Options(caches=False, races=False)):
        results = both(case.ours, inputs)
    check(case, results)
    given = {tuple(each.shape) for each in tree_leaves(inputs) if isinstance(each, Tensor)}
    features, weight, _ = inputs["leaves"]
    logits = features[:, 0].numel() * len(weight)
    largest = max(math.prod(shape) for shape in made.shapes - given)
    return Row(
        f"{case.name}, forward and backward",
        case.dtype_name,
        case.layout,
        seed,
        OURS,
        "",
        {FIGURE: largest / logits},
    )

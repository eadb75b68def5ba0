"""Which PyTorch operations ran, and the bytes that each must at least read and write."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.virtual_gpu.poison import PATTERN, poison

ALLOCATIONS = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
}
# These read of their first tensor no more than they write.
LOOKUPS = {"gather", "index", "index_select", "take", "take_along_dim", "embedding"}
# These write of their first tensor no more than they are given, and read of it no more.
SCATTERS = {"index_put_", "_index_put_impl_", "scatter_", "scatter_add_", "index_add_", "index_copy_"}
# These take only the shape and kind of their first tensor.
FILLS = {"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"}
# These overwrite their first tensor without reading it.
OVERWRITES = {"fill_", "zero_", "copy_", "random_", "normal_", "uniform_"}


@dataclass(frozen=True)
class TorchOperation:
    """An operation of PyTorch in the path.

    Attributes:
        bytes_read, bytes_written: each element of each tensor once; a sort moves more in truth.
        waits: whether it brings a value to the host, which on a GPU waits for everything before.
    """

    name: str
    bytes_read: int
    bytes_written: int
    waits: bool = False


class Watch(TorchDispatchMode):
    """Records operations while it is active, poisons what is allocated, and looks inside custom operations."""

    def __init__(self, record: Callable[[TorchOperation], None], pattern: int | None = PATTERN) -> None:
        """
        Args:
            record: called with each operation that moves bytes.
            pattern: of poison for new tensors; None leaves them as they are.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._record = record
        self._pattern = pattern

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace not in ("aten", "prim", "prims"):
            # The body of a custom operation: past this mode to the CPU's kernel, with the mode on again inside.
            with self:
                return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)
        result = func(*args, **kwargs)
        if func in ALLOCATIONS:
            if self._pattern is not None:
                poison(result, self._pattern)
            return result
        if func is torch.ops.aten._local_scalar_dense.default:
            self._record(TorchOperation("item", args[0].element_size(), 0, waits=True))
        else:
            operation = _cost(func, args, kwargs, result)
            if operation.bytes_read or operation.bytes_written:
                self._record(operation)
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of different elements: expanded dimensions count once, and so does a tensor that comes twice."""
    total, seen = 0, set()
    for tensor in tensors:
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if key in seen:
            continue
        seen.add(key)
        count = tensor.element_size() if tensor.numel() else 0
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            count *= size if stride else 1
        total += count
    return total


def _cost(func: Any, args: Any, kwargs: Any, result: Any) -> TorchOperation:
    name = func._schema.name.removeprefix("aten::")
    changed = [
        value
        for argument, value in _named(func, args, kwargs)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    changed_tensors = _tensors(changed)
    changed_ids = {id(tensor) for tensor in changed_tensors}
    inputs = [tensor for tensor in _tensors((args, kwargs)) if id(tensor) not in changed_ids]
    outputs = [tensor for tensor in _tensors(result) if id(tensor) not in changed_ids]
    storages = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    fresh = [tensor for tensor in outputs if tensor.untyped_storage().data_ptr() not in storages]
    if not changed_tensors and not fresh:
        return TorchOperation(name, 0, 0)  # a view
    written = _bytes([*changed_tensors, *fresh])
    read = _bytes(inputs)
    if name in FILLS:
        read = 0
    if name in LOOKUPS and inputs:
        read = min(_bytes(inputs[:1]), written) + _bytes(inputs[1:])
    if name in SCATTERS and changed_tensors:
        given = max((_bytes([tensor]) for tensor in inputs if tensor.dtype == changed_tensors[0].dtype), default=0)
        return TorchOperation(name, read + min(given, written), min(given, written))
    if name not in OVERWRITES and func._schema.overload_name != "out":
        read += _bytes(changed_tensors)
    return TorchOperation(name, read, written)


def _named(func: Any, args: Any, kwargs: Any) -> list[tuple[Any, Any]]:
    """(argument of the schema, value) of what was given."""
    schema = func._schema.arguments
    pairs = list(zip(schema, args, strict=False))
    by_name = {argument.name: argument for argument in schema}
    return pairs + [(by_name[name], value) for name, value in kwargs.items() if name in by_name]

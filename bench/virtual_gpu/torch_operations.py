"""Which PyTorch operations ran, and the bytes that each must at least read and write."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
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
# A value for the host. Which of them is seen depends on where it is called, as two are made of the third.
ITEMS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default, torch.ops.aten.is_nonzero.default}
# These read of their first tensor no more than they write.
LOOKUPS = {"gather", "index", "index_select", "take", "take_along_dim", "embedding"}
# These write of their first tensor no more than they are given, and read of it no more.
SCATTERS = {"index_put_", "_index_put_impl_", "scatter_", "scatter_add_", "index_add_", "index_copy_"}
# These take only the shape and kind of their first tensor.
FILLS = {"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"}
# These overwrite their first tensor without reading it.
OVERWRITES = {"fill_", "zero_", "copy_", "random_", "normal_", "uniform_"}
# The size of these results, or the answer, is a value, which the host waits for on a GPU.
VALUE_SIZED = {
    *("nonzero", "masked_select", "bincount", "equal", "allclose"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
}
# So do these if an index is a mask, of which they take `nonzero` first.
INDEXED = {"index", "_unsafe_index", "index_put", "index_put_", "_unsafe_index_put", "_index_put_impl_"}


@dataclass(frozen=True)
class TorchOperation:
    """An operation of PyTorch in the path.

    Attributes:
        bytes_read, bytes_written: each element of each tensor once; a sort moves more in truth.
        waits: whether it brings a value to the host, which on a GPU waits for everything before. Tensors are on the CPU
            here, so a copy to it shows only as `cpu`, `to("cpu")` or `tolist`, and a copy from it not at all.
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
        self._copies: TorchFunctionMode = _CopiesToHost(record)

    def __enter__(self) -> "Watch":
        self._copies.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._copies.__exit__(*exception)

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
        if func in ITEMS:
            self._record(TorchOperation("item", args[0].element_size(), 0, waits=True))
        else:
            operation = replace(_cost(func, args, kwargs, result), waits=_waits(func, args, kwargs))
            if operation.bytes_read or operation.bytes_written or operation.waits:
                self._record(operation)
        return result


class _CopiesToHost(TorchFunctionMode):
    """Records methods that copy to the host: on the CPU no operation comes of them that could be seen."""

    def __init__(self, record: Callable[[TorchOperation], None]) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # A `torch.device` is another tensor's, as a rule, and would be the GPU's there; a string is meant.
        named = any(isinstance(each, str) and each == "cpu" for each in (*args[1:], *kwargs.values()))
        if func in (Tensor.cpu, Tensor.tolist) or (func is Tensor.to and named):
            self._record(TorchOperation(func.__name__, _bytes(args[:1]), 0, waits=True))
        return func(*args, **kwargs)


def _waits(func: Any, args: Any, kwargs: Any) -> bool:
    name = func._schema.name.removeprefix("aten::")
    given = {argument.name: value for argument, value in _named(func, args, kwargs)}
    if name == "repeat_interleave":
        return given.get("output_size") is None
    if name not in INDEXED:
        return name in VALUE_SIZED
    indices = [each for each in given["indices"] if each is not None]
    masks = [each for each in indices if each.dtype in (torch.bool, torch.uint8)]
    # A number under masks alone is filled in without a wait; one that were on the GPU would not be.
    filled = "values" in given and given["values"].numel() == 1 and len(masks) == len(indices)
    return bool(masks) and not filled


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

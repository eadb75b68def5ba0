"""Arguments as a kernel sees them: tensors as regions of memory with limits, everything as bytes of parameters."""

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bench.virtual_gpu.ptx import Parameter
from bench.virtual_gpu.records import REGION_BITS, REGION_START, Region

LINE_BYTES = 128
FLOAT_FORMATS = {4: "<f", 8: "<d"}


@dataclass
class _Storage:
    """A storage that arguments point into; the kernel may access what lies between the ends of their tensors."""

    host: int
    begin: int
    end: int


class Memory:
    """Binds arguments to parameters.

    A storage's region starts at a virtual address of its own, as aligned as a GPU's allocator would have it, so that
    what is counted does not depend on where the CPU has put it, and an index past the end of one tensor does not reach
    another. Tensors that share a storage share its region.
    """

    def __init__(self, parameters: Sequence[Parameter], size: int, arguments: Sequence[Any]) -> None:
        """
        Args:
            parameters, size: of the kernel; its bytes of parameters.
            arguments: one a parameter: tensors on the CPU, numbers, or None for a null pointer.

        Raises:
            ValueError: there is not one argument a parameter, or a tensor is elsewhere.
        """
        if len(arguments) != len(parameters):
            raise ValueError(f"{len(arguments)} arguments for {len(parameters)} parameters")
        self._storages: list[_Storage] = []
        self._pointers: list[tuple[int, str]] = []
        self.parameters = bytearray(max(size, 1))
        for parameter, argument in zip(parameters, arguments, strict=True):
            self.parameters[parameter.offset : parameter.offset + parameter.size] = self._bytes(parameter, argument)
        self._touched = [(ctypes.c_uint8 * (each.end // LINE_BYTES + 2))() for each in self._storages]
        # Region 0 is where null points to, and is empty.
        self.regions = (Region * (1 + len(self._storages)))()
        for number, (storage, touched) in enumerate(zip(self._storages, self._touched, strict=True), 1):
            self.regions[number] = Region(
                storage.host, REGION_START + storage.begin, REGION_START + storage.end, ctypes.addressof(touched)
            )

    def relative(self, address: int) -> tuple[int, str]:
        """Bytes from an argument, and its parameter: the nearest that starts below in the same region, or ""."""
        same = [pointer for pointer in self._pointers if pointer[0] >> REGION_BITS == address >> REGION_BITS]
        if not same:
            return address, ""
        below = [pointer for pointer in same if pointer[0] <= address]
        start, name = max(below) if below else min(same)
        return address - start, name

    def _bytes(self, parameter: Parameter, argument: Any) -> bytes:
        size = parameter.size
        if isinstance(argument, Tensor):
            pointer = self._pointer(argument)
            self._pointers.append((pointer, parameter.name))
            return pointer.to_bytes(size, "little")
        if argument is None:
            return bytes(size)
        if parameter.type in ("f32", "f64") or isinstance(argument, float):
            if size not in FLOAT_FORMATS:
                raise NotImplementedError(f"a float of {size} bytes as parameter {parameter.name}")
            return struct.pack(FLOAT_FORMATS[size], argument)
        return (int(argument) & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def _pointer(self, tensor: Tensor) -> int:
        if tensor.device.type != "cpu":
            raise ValueError(f"a tensor on {tensor.device}; the virtual GPU reads the CPU's memory")
        host = tensor.untyped_storage().data_ptr()
        offset = int(tensor.storage_offset()) * tensor.element_size()
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in steps) if tensor.numel() else -1
        end = offset + (last + 1) * tensor.element_size()
        hosts = [known.host for known in self._storages]
        if host not in hosts:
            hosts.append(host)
            self._storages.append(_Storage(host, offset, end))
        number = hosts.index(host)
        known = self._storages[number]
        known.begin, known.end = min(known.begin, offset), max(known.end, end)
        return (number + 1 << REGION_BITS) + REGION_START + offset

"""A kernel decoded for the runtime: its instructions and basic blocks as arrays of records."""

import ctypes
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bench.virtual_gpu import records
from bench.virtual_gpu.assembler import Assembler, Encoded, Modifiers, not_modelled
from bench.virtual_gpu.flow import rank_of_edge, ranks
from bench.virtual_gpu.instructions import DECODERS
from bench.virtual_gpu.native import Runtime, load
from bench.virtual_gpu.ptx import Kernel, Statement, parse


@dataclass(frozen=True)
class Program:
    """What a launch needs of a kernel.

    Attributes:
        record: as the runtime takes it; `kept` holds the arrays that it points to.
        statements: every instruction by its index; sites: the indices of those that access memory.
        blocks: the instructions of each basic block.
    """

    kernel: Kernel
    runtime: Runtime
    record: records.Program
    kept: tuple[Any, ...]
    statements: tuple[Statement, ...]
    sites: tuple[int, ...]
    blocks: tuple[tuple[Statement, ...], ...]

    def mix(self, block_executions: list[int]) -> Counter[str]:
        """How often warps executed each opcode."""
        counts: Counter[str] = Counter()
        for times, block in zip(block_executions, self.blocks, strict=True):
            for statement in block:
                counts[statement.opcode] += times
        return counts


def assemble(ptx: str, name: str) -> Program:
    """Decodes the kernel of a PTX module whose name is, or contains, `name`.

    Raises:
        NotImplementedError: the kernel has an instruction that is not modelled; the message names it.
        KeyError: there is no such kernel, or more than one.
    """
    kernel = parse(ptx, name)
    return _Builder(kernel, load()).build()


class _Builder:
    def __init__(self, kernel: Kernel, runtime: Runtime) -> None:
        self.kernel = kernel
        self.runtime = runtime
        self.assembler = Assembler(kernel)
        self.instructions: list[records.Instruction] = []
        self.statements: list[Statement] = []
        self.sites: list[int] = []

    def build(self) -> Program:
        blocks = [self._block(block) for block in self.kernel.blocks]
        _rank(blocks)
        assembler = self.assembler
        instructions = (records.Instruction * len(self.instructions))(*self.instructions)
        self.runtime.library.resolve(instructions, len(instructions))
        block_array = (records.Block * len(blocks))(*blocks)
        lists = (ctypes.c_uint32 * max(1, len(assembler.lists)))(*assembler.lists)
        specials = (records.SpecialRow * max(1, len(assembler.specials)))(
            *[records.SpecialRow(records.SPECIAL_REGISTERS[name], row) for name, row in assembler.specials.items()]
        )
        # Rows are read as vectors of 64 bytes: the table starts at such an address.
        room = (ctypes.c_uint8 * (len(assembler.constants) + 64))()
        start = -(-ctypes.addressof(room) // 64) * 64
        ctypes.memmove(start, bytes(assembler.constants), len(assembler.constants))
        record = records.Program(
            *(ctypes.addressof(array) for array in (instructions, block_array, lists, specials)),
            start,
            len(instructions),
            len(blocks),
            len(assembler.specials),
            len(self.sites),
            assembler.register_bytes,
        )
        return Program(
            self.kernel,
            self.runtime,
            record,
            (instructions, block_array, lists, specials, room),
            tuple(self.statements),
            tuple(self.sites),
            tuple(tuple(block) for block in self.kernel.blocks),
        )

    def _block(self, statements: list[Statement]) -> records.Block:
        first = len(self.instructions)
        record = records.Block(first=first, length=len(statements), guard=records.NONE, threads=records.NONE)
        for statement in statements:
            index = len(self.statements)
            self.statements.append(statement)
            if statement.ends_block:
                record.index = index
                record.guard = self._guard(statement)
                self._ending(record, statement)
            else:
                self.instructions.append(self._instruction(statement, index))
        record.count = len(self.instructions) - first
        return record

    def _guard(self, statement: Statement) -> int:
        if statement.guard is None:
            return records.NONE
        return self.assembler.operand(statement.guard, "pred", statement)

    def _instruction(self, statement: Statement, index: int) -> records.Instruction:
        decoder = DECODERS.get(statement.base)
        if decoder is None:
            raise not_modelled(statement)
        encoded: Encoded = decoder(self.assembler, statement)
        if encoded.handler not in self.runtime.handlers:
            raise not_modelled(statement)
        site = 0
        if encoded.counted:
            site = len(self.sites)
            self.sites.append(index)
        return records.Instruction(
            number=self.runtime.handlers[encoded.handler],
            target=encoded.target,
            first=encoded.first,
            second=encoded.second,
            third=encoded.third,
            extra=encoded.extra,
            guard=self._guard(statement),
            list=self.assembler.list_of(encoded.operands) if encoded.operands else records.NONE,
            count=encoded.count,
            site=site,
            option=encoded.option,
            flags=encoded.flags,
            index=index,
            immediate=encoded.immediate,
        )

    def _ending(self, record: records.Block, statement: Statement) -> None:
        if statement.base == "bra":
            label = statement.operands[0]
            if label not in self.kernel.labels:
                raise not_modelled(statement)
            record.ending, record.target = records.BRANCH, self.kernel.labels[label]
        elif statement.base in ("ret", "exit"):
            record.ending = records.EXIT
        elif statement.base == "trap":
            record.ending = records.TRAP
        elif statement.base in ("bar", "barrier"):
            self._barrier(record, statement)
        else:
            raise not_modelled(statement)

    def _barrier(self, record: records.Block, statement: Statement) -> None:
        modifiers = Modifiers(statement)
        kind = modifiers.take("sync", "arrive", "red")
        operation = modifiers.take(*records.BARRIER_OPERATIONS)
        for harmless in ("cta", "aligned", "u32", "pred"):
            modifiers.take(harmless)
        modifiers.done()
        if kind is None:
            raise not_modelled(statement)
        operands = list(statement.operands)
        record.ending = {"sync": records.BARRIER, "arrive": records.ARRIVE, "red": records.BARRIER_REDUCE}[kind]
        if kind == "red":
            result = "b32" if operation == "popc" else "pred"
            record.operation = records.BARRIER_OPERATIONS[operation or ""]
            record.result = self.assembler.operand(operands.pop(0), result, statement)
            record.predicate = self.assembler.operand(operands.pop(), "pred", statement)
        record.barrier = self.assembler.operand(operands[0], "u32", statement)
        if len(operands) > 1:
            record.threads = self.assembler.operand(operands[1], "u32", statement)


def _rank(blocks: list[records.Block]) -> None:
    """Tells each block the ranks of those that it leads to."""

    def successors(number: int, block: records.Block) -> list[int]:
        ends = block.ending in (records.EXIT, records.TRAP, records.BRANCH) and block.guard == records.NONE
        following = [] if ends or number + 1 == len(blocks) else [number + 1]
        return [*following, block.target] if block.ending == records.BRANCH else following

    edges = [successors(number, block) for number, block in enumerate(blocks)]
    entered, again = ranks(edges)
    for number, block in enumerate(blocks):
        for target in edges[number]:
            rank = rank_of_edge(number, target, entered, again)
            if target == number + 1:
                block.next_rank = rank
            if block.ending == records.BRANCH and target == block.target:
                block.target_rank = rank

"""The text of a PTX module, taken apart: kernels, parameters, registers, shared memory, statements, basic blocks.

Nothing here knows what an instruction does. See the PTX ISA, chapters "Syntax" and "State Spaces, Types, and
Variables".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

TYPE_BYTES = {
    **{f"{kind}{bits}": bits // 8 for kind in "bus" for bits in (8, 16, 32, 64)},
    "b128": 16,
    "f16": 2,
    "bf16": 2,
    "f32": 4,
    "f64": 8,
    "f16x2": 4,
    "bf16x2": 4,
    "f32x2": 8,
    "pred": 4,
}
# These end a basic block, as lanes may part or have to wait there.
ENDINGS = ("bra", "ret", "exit", "trap", "bar", "barrier", "brx")


@dataclass(frozen=True)
class Parameter:
    """A kernel's parameter: its place in the block of parameters, in bytes."""

    name: str
    type: str
    offset: int
    size: int


@dataclass(frozen=True)
class Register:
    """A register: its name, the bytes of a lane, and the scope that it is declared in."""

    name: str
    type: str
    scope: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return TYPE_BYTES[self.type]


@dataclass(frozen=True)
class Statement:
    """One instruction: `@!guard opcode operands`, and the scope in which its names are looked up."""

    opcode: str
    operands: tuple[str, ...]
    guard: str | None
    scope: tuple[int, ...]

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])

    @property
    def ends_block(self) -> bool:
        return self.base in ENDINGS and not self.opcode.startswith("bar.warp")

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".strip()


@dataclass
class Kernel:
    """One `.entry` of a module.

    Attributes:
        parameters: in order; parameter_bytes: of all.
        shared: offset in bytes of each shared-memory symbol; shared_bytes: of those with a size. Symbols without one
            (`.extern`) lie behind them.
        max_threads: what `.reqntid` or `.maxntid` says, or None.
    """

    name: str
    parameters: list[Parameter] = field(default_factory=list)
    parameter_bytes: int = 0
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    max_threads: int | None = None
    registers: dict[tuple[tuple[int, ...], str], Register] = field(default_factory=dict)
    blocks: list[list[Statement]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def register(self, name: str, scope: tuple[int, ...]) -> Register | None:
        """The register that a name means inside a scope."""
        for depth in range(len(scope), 0, -1):
            found = self.registers.get((scope[:depth], name))
            if found is not None:
                return found
        return None


def parse(ptx: str, name: str) -> Kernel:
    """Parses the one kernel whose name is `name`, or contains it.

    Raises:
        KeyError: there is no such kernel, or more than one.
    """
    text = re.sub(r"/\*.*?\*/", " ", re.sub(r"//[^\n]*", "", ptx), flags=re.DOTALL)
    pattern = re.compile(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?\s*((?:\.\w+[^\n{]*\s*)*)\{", re.DOTALL)
    entries = list(pattern.finditer(text))
    found = [entry for entry in entries if entry[1] == name] or [entry for entry in entries if name in entry[1]]
    if len(found) != 1:
        raise KeyError(f"{name!r} is in {len(found)} of the kernels {[entry[1] for entry in entries]}")
    entry = found[0]
    kernel = Kernel(entry[1])
    _read_parameters(kernel, entry[2] or "")
    threads = re.search(r"\.(?:reqntid|maxntid)\s+([\d,\s]+)", entry[3])
    if threads:
        kernel.max_threads = 1
        for extent in threads[1].split(","):
            kernel.max_threads *= int(extent)
    body = text[entry.end() : _closing_brace(text, entry.end())]
    _place_shared(kernel, text, body)
    _read_body(kernel, body)
    return kernel


def split_operands(text: str) -> tuple[str, ...]:
    """Operands at the commas that are outside all brackets."""
    operands, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            operands.append(text[start:position].strip())
            start = position + 1
    last = text[start:].strip()
    return (*operands, last) if last else tuple(operands)


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _read_parameters(kernel: Kernel, text: str) -> None:
    for declaration in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(
            r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s.*?([\w$]+)(?:\[(\d+)\])?", declaration, re.DOTALL
        )
        if match is None:
            raise NotImplementedError(f"parameter {declaration!r}")
        alignment, kind, name, count = match.groups()
        size = TYPE_BYTES[kind] * int(count or 1)
        offset = _aligned(kernel.parameter_bytes, int(alignment or TYPE_BYTES[kind]))
        kernel.parameters.append(Parameter(name, kind, offset, size))
        kernel.parameter_bytes = offset + size


def _closing_brace(text: str, start: int) -> int:
    depth = 1
    for match in re.finditer(r"[{}]", text[start:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return start + match.start()
    raise ValueError("a kernel's body has no end")


def _place_shared(kernel: Kernel, text: str, body: str) -> None:
    pattern = r"(\.extern\s+)?\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?"
    without_size = []
    for extern, alignment, kind, name, count in re.findall(pattern, text):
        if not re.search(rf"(?<![\w$]){re.escape(name)}(?![\w$])", body):
            continue
        if extern or count == "":
            without_size.append(name)
            continue
        offset = _aligned(kernel.shared_bytes, int(alignment or TYPE_BYTES[kind]))
        kernel.shared[name] = offset
        kernel.shared_bytes = offset + TYPE_BYTES[kind] * int(count)
    kernel.shared_bytes = _aligned(kernel.shared_bytes, 16)
    kernel.shared.update(dict.fromkeys(without_size, kernel.shared_bytes))


def _pieces(body: str) -> Iterator[tuple[tuple[int, ...], str]]:
    """Labels (with their colon), directives and instructions of a body, each with its scope of nested braces."""
    scope: tuple[int, ...] = (0,)
    scopes, position = 0, 0
    token = re.compile(
        r"\s*(?:(?P<open>\{)|(?P<close>\})|(?P<none>;)|(?P<label>[$%\w]+)\s*:(?!:)|"
        r"(?P<skip>\.(?:loc|file|section|pragma)\b[^\n;]*[\n;])|(?P<text>[^;]+);)"
    )
    body = body.rstrip()
    while position < len(body):
        match = token.match(body, position)
        if match is None:
            raise NotImplementedError(f"PTX syntax: {body[position : position + 80]!r}")
        position = match.end()
        if match["open"]:
            scopes += 1
            scope = (*scope, scopes)
        elif match["close"]:
            scope = scope[:-1]
        elif match["label"]:
            yield scope, f"{match['label']}:"
        elif match["text"]:
            yield scope, " ".join(match["text"].split())


def _read_body(kernel: Kernel, body: str) -> None:
    kernel.blocks.append([])
    for scope, piece in _pieces(body):
        if piece.endswith(":"):
            if kernel.blocks[-1]:
                kernel.blocks.append([])
            kernel.labels[piece[:-1]] = len(kernel.blocks) - 1
        elif piece.startswith(".reg"):
            _declare(kernel, scope, piece)
        elif piece.startswith(".local"):
            raise NotImplementedError(f"local memory: {piece}")
        elif not piece.startswith("."):
            match = re.fullmatch(r"(?:@\s*(!?\s*[%\w$]+)\s+)?([\w.:]+)\s*(.*)", piece)
            if match is None:
                raise NotImplementedError(f"PTX syntax: {piece!r}")
            guard = match[1].replace(" ", "") if match[1] else None
            statement = Statement(match[2], split_operands(match[3]), guard, scope)
            kernel.blocks[-1].append(statement)
            if statement.ends_block:
                kernel.blocks.append([])
    # A last block that is empty ends the program, and is a target that jumps to the end may need.
    kernel.blocks[-1].append(Statement("ret", (), None, (0,)))


def _declare(kernel: Kernel, scope: tuple[int, ...], piece: str) -> None:
    match = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", piece)
    if match is None or match[1] not in TYPE_BYTES:
        raise NotImplementedError(f"declaration {piece!r}")
    for item in match[2].split(","):
        name, _, count = item.strip().rstrip(">").partition("<")
        names = [f"{name}{number}" for number in range(int(count))] if count else [name]
        for each in names:
            kernel.registers[scope, each] = Register(each, match[1], scope)

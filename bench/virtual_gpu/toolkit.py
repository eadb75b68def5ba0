"""The CUDA binary tools that come inside Triton's wheel; none needs a GPU or a driver."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton


@dataclass(frozen=True)
class Resources:
    """What machine code needs: registers of a thread, bytes of stack and of local memory of a thread (spills), bytes
    of static shared memory of a CTA."""

    registers: int
    stack: int
    local: int
    shared: int


def tool(name: str) -> Path:
    """cuobjdump, ptxas or nvdisasm."""
    return Path(triton.__file__).parent / "backends/nvidia/bin" / name


def resources(cubin: bytes) -> Resources:
    """Resources of the one kernel of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.check_output([tool("cuobjdump"), "--dump-resource-usage", file.name], text=True)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", text)}
    return Resources(found["REG"], found["STACK"], found["LOCAL"], found["SHARED"])


def assembled(ptx: str, name: str) -> bytes:
    """The machine code of one kernel of a PTX module, by ptxas, for the module's own architecture."""
    target = re.search(r"\.target\s+(sm_\w+)", ptx)
    if target is None:
        raise ValueError("the PTX names no target")
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "module.ptx", Path(folder) / "module.cubin"
        source.write_text(ptx)
        blackwell = int(re.sub(r"\D", "", target[1])) >= 100 and tool("ptxas-blackwell").exists()
        command = [
            tool("ptxas-blackwell" if blackwell else "ptxas"),
            "--gpu-name",
            target[1],
            "--entry",
            name,
            source,
            "--output-file",
            made,
        ]
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        return made.read_bytes()

"""What the compiler made of each kernel: registers, spills, shared memory, tensor cores.

XLA writes PTX and its sequence of launches to a folder (`xla_dump_to`); ptxas assembles the PTX and
says what it needs.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

_TENSOR_CORE = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)")
_ENTRY = re.compile(r"\.entry\s+([\w$]+)")
_LAUNCH = re.compile(r"\] (\S+) grid: \[.*?shared_memory: (\d+) bytes")


@dataclasses.dataclass(frozen=True)
class Resources:
    """One kernel's.

    Attributes:
        name: As in the PTX.
        registers: A thread's; None without ptxas.
        spill_bytes: Stored and loaded; None without ptxas.
        shared_bytes: A block's, as it is launched.
        tensor_core: The kind of tensor-core instruction ("mma.sync", ...), None for none.
    """

    name: str
    registers: int | None
    spill_bytes: int | None
    shared_bytes: int
    tensor_core: str | None


def dump_options(folder: Path | str) -> dict[str, str]:
    """Options of the compiler with which it writes what `read_dump` reads."""
    # From 0.11 on no PTX is written unless the pass that emits it is named.
    return {"xla_dump_to": str(folder), "xla_dump_emitter_re": "ptx"}


def read_dump(folder: Path, target: str, ptxas: str | None) -> list[Resources]:
    """All kernels of a dump.

    Args:
        folder: What `xla_dump_to` named.
        target: Architecture (`sm_90a`).
        ptxas: The assembler; None leaves registers and spills open.
    """
    shared: dict[str, int] = {}
    for path in folder.glob("*thunk_sequence.txt"):
        for name, size in _LAUNCH.findall(path.read_text()):
            shared[name] = max(int(size), shared.get(name, 0))
    found = []
    for path in sorted(folder.glob("*.ptx")):
        text = path.read_text()
        if not _ENTRY.search(text):
            continue  # a module whose kernels are all our own has an empty file besides theirs
        used = _assemble(path, target, ptxas) if ptxas else {}
        kinds = _TENSOR_CORE.findall(text)
        for name in _ENTRY.findall(text):
            registers, spills = used.get(name, (None, None))
            kind = kinds[0] if kinds else None
            found.append(Resources(name, registers, spills, shared.get(name, 0), kind))
    return found


def _assemble(path: Path, target: str, ptxas: str) -> dict[str, tuple[int, int]]:
    """Registers and spilled bytes by kernel.

    Mosaic GPU assembles by itself, and leaves what its ptxas said beside the PTX.

    Raises:
        RuntimeError: ptxas refuses the file.
    """
    log = path.with_suffix(".ptxas")
    if log.exists():
        return parse_ptxas(log.read_text())
    command = [ptxas, "-v", f"-arch={target}", str(path), "-o", "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ptxas refuses {path.name}: {done.stderr[-500:]}")
    return parse_ptxas(done.stderr)


def parse_ptxas(log: str) -> dict[str, tuple[int, int]]:
    """What `ptxas -v` prints: registers and spilled bytes by kernel."""
    used = {}
    for part in log.split("Compiling entry function '")[1:]:
        spills = sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", part)))
        registers = re.search(r"Used (\d+) registers", part)
        used[part.split("'", 1)[0]] = (int(registers.group(1)) if registers else 0, spills)
    return used


def without_tensor_core(products: Sequence[str], resources: Sequence[Resources]) -> list[str]:
    """Kernels among the products that multiply matrices the slow way.

    Args:
        products: Names as the compiled text has them.
        resources: Of a dump; equal kernels share one piece of PTX there.
    """
    if products and not resources:
        return ["no PTX was written"]
    names = {re.sub(r"[.\-]", "_", name) for name in products}
    return [r.name for r in resources if r.name in names and r.tensor_core is None]

"""What the compiler made of each kernel: registers, spills, shared memory, tensor cores, buffers.

XLA writes PTX and its sequence of launches to a folder (`xla_dump_to`); ptxas assembles the PTX and
says what it needs.

How many tiles a loop has in shared memory at once is in the PTX. Each array that a loop reads by
`cp.async` is a group of copies, and a wait names how many groups may be unfinished:

    $L__BB0_3:
        cp.async.wait_group 4;          4 groups of 2 a tile: 2 later tiles are under way
        mma.sync ...                    while this one is computed on: 3 buffers
        cp.async ... [x];   cp.async.commit_group;
        cp.async ... [w];   cp.async.commit_group;
        @%p bra $L__BB0_3;

A loop that waits for all its copies (`wait_group 0`) has one buffer: it computes or it loads.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_TENSOR_CORE = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)")
_ENTRY = re.compile(r"\.entry\s+([\w$]+)")
_LABEL = re.compile(r"^\s*(\$[\w$]+):")
_BRANCH = re.compile(r"\bbra(?:\.uni)?\s+(\$[\w$]+)")
_WAIT = re.compile(r"\bcp\.async\.wait_group\s+(\d+)|\bcp\.async\.wait_all\b")
_COMMIT = "cp.async.commit_group"
_NUMBER = re.compile(r"_+\d+$")
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
        buffers: Tiles that its main loops have in shared memory at once, the least of them; None
            for a kernel without a loop that multiplies or copies tiles.
    """

    name: str
    registers: int | None
    spill_bytes: int | None
    shared_bytes: int
    tensor_core: str | None
    buffers: int | None = None


def dump_options(folder: Path | str) -> dict[str, str | bool]:
    """Options of the compiler with which it writes what `read_dump` reads."""
    # From 0.11 on no PTX is written unless the pass that emits it is named.
    return {"xla_dump_to": str(folder), "xla_dump_emitter_re": "ptx"}


def read_dump(folder: Path, target: str, ptxas: str | None) -> list[Resources]:
    """All kernels of a dump.

    Args:
        folder: What `xla_dump_to` named.
        target: Architecture (`sm_90a`).
        ptxas: The assembler; None leaves registers and spills open.

    Raises:
        RuntimeError: A kernel that is launched has no PTX there, or ptxas says nothing of one.
    """
    shared: dict[str, int] = {}
    for path in folder.glob("*thunk_sequence.txt"):
        for name, size in _LAUNCH.findall(path.read_text()):
            shared[name] = max(int(size), shared.get(name, 0))
    found = []
    for path in sorted(folder.glob("*.ptx")):
        # A module whose kernels are all our own has an empty file besides theirs.
        bodies = kernels_of(path.read_text())
        used = _assemble(path, target, ptxas) if bodies and ptxas else dict[str, Any]()
        for name, body in bodies.items():
            if ptxas and name not in used:
                raise RuntimeError(f"ptxas says nothing of {name} in {path.name}.")
            registers, spills = used.get(name, (None, None))
            kind = _TENSOR_CORE.search(body)
            found.append(
                Resources(
                    name,
                    registers,
                    spills,
                    shared.get(name, 0),
                    kind.group(1) if kind else None,
                    buffers_of(body),
                )
            )
    missing = sorted(shared.keys() - {kernel.name for kernel in found})
    if missing or not found:
        raise RuntimeError(
            f"No PTX was written for {', '.join(missing[:3]) or 'any kernel'}: nothing is known of "
            "its registers, spills and tensor cores. Either a cache of compiled programs answered "
            "for the compiler (switch jax_enable_compilation_cache off), or this JAX wants other "
            "options than those of rtpjax.plan.ptx.dump_options."
        )
    return found


def kernels_of(text: str) -> dict[str, str]:
    """The text of each kernel in a file of PTX, by name."""
    found = [*_ENTRY.finditer(text)]
    bounds = itertools.pairwise([*(m.start() for m in found), len(text)])
    return {m.group(1): text[first:end] for m, (first, end) in zip(found, bounds, strict=True)}


def buffers_of(body: str) -> int | None:
    """Tiles in shared memory at once, of the main loop that has the fewest; see the module.

    Main loops are the innermost ones with tensor-core instructions or waits for copies.
    """
    lines = body.splitlines()
    counts = [_buffers_of_loop(lines[first:last]) for first, last in _main_loops(lines)]
    return min(counts, default=None)


def _main_loops(lines: Sequence[str]) -> list[tuple[int, int]]:
    """Ranges of lines from a label to the last branch back to it."""
    labels = {m.group(1): i for i, line in enumerate(lines) if (m := _LABEL.match(line))}
    ends: dict[int, int] = {}
    for i, line in enumerate(lines):
        branch = _BRANCH.search(line)
        if branch and labels.get(branch.group(1), i) < i:
            ends[labels[branch.group(1)]] = i
    loops = [
        (first, last)
        for first, last in ends.items()
        if any(_TENSOR_CORE.search(line) or _WAIT.search(line) for line in lines[first:last])
    ]
    return [
        (first, last)
        for first, last in loops
        if not any(first < inner and end < last for inner, end in loops)
    ]


def _buffers_of_loop(lines: Sequence[str]) -> int:
    """One that is computed on, and those that may be unfinished whenever the loop waits."""
    waits = [int(m.group(1) or 0) for line in lines if (m := _WAIT.search(line))]
    groups = sum(_COMMIT in line for line in lines)
    return 1 + min(waits) // groups if waits and groups else 1


def buffers_in_flight(resources: Sequence[Resources]) -> dict[str, int]:
    """The least number of buffers of all kernels of a name (`row_matmul`, `row_matmul__3`, ...)."""
    found: dict[str, int] = {}
    for kernel in resources:
        if kernel.buffers is not None:
            name = _NUMBER.sub("", kernel.name)
            found[name] = min(kernel.buffers, found.get(name, kernel.buffers))
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
    names = {re.sub(r"[.\-]", "_", name) for name in products}
    return [r.name for r in resources if r.name in names and r.tensor_core is None]

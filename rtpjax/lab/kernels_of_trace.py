"""Which kernels a profile saw, what each took, and which part of the model it is.

The program's text says which weights an instruction reads. A kernel of XLA has the name of the
instruction that it was compiled for, as far as PTX allows it. One of ours has the name that
pallas_call was given, and a number: different kernels of a name count up (row_matmul,
row_matmul__1, ...) in the order of the program, equal ones share one. Outside of CUDA graphs a
profile also says the instruction itself (`hlo_op`).
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rtpjax.plan import hlo

_PARTS = {
    frozenset(("q_proj", "k_proj", "v_proj")): "qkv",
    frozenset(("gate_proj", "up_proj")): "gate_up",
    frozenset(("o_proj",)): "o",
    frozenset(("down_proj",)): "down",
    frozenset(("lm_head",)): "lm_head",
    frozenset(("embed_tokens",)): "embed_tokens",
}


@dataclasses.dataclass(frozen=True)
class Time:
    """What the kernels of one part took.

    Attributes:
        part: Of the model, or the kernels' own name.
        calls: How many there were.
        us: Microseconds of all.
    """

    part: str
    calls: int
    us: float


def events(folder: Path) -> Iterator[tuple[str, str | None, float]]:
    """Of a folder that jax.profiler.trace wrote: each kernel's name, instruction and microseconds.

    Without a GPU the events are those of XLA's threads.
    """
    from jax.profiler import ProfileData

    for path in sorted(folder.rglob("*.xplane.pb")):
        profile = ProfileData.from_file(str(path))  # its planes do not keep it
        planes = list(profile.planes)
        devices = [plane for plane in planes if plane.name.startswith("/device:GPU")]
        for plane in devices or planes:
            for line in plane.lines:
                if devices and not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    operation = {k: v for k, v in event.stats if k}.get("hlo_op")
                    if devices or operation is not None:
                        yield event.name, operation, event.duration_ns / 1e3


def parts(module: hlo.Module, argument_names: Sequence[str]) -> dict[str, str]:
    """The part of the model that each kernel reads the weights of, by its name in PTX."""
    found: dict[str, str] = {}
    numbered: dict[str, list[str]] = defaultdict(list)
    for instruction in module.entry.values():
        name = instruction.name
        if instruction.opcode == "custom-call":
            name = hlo.kernel_name(instruction)
            code = re.sub(r"metadata=\{.*?\}", "", instruction.attributes)
            if code not in numbered[name]:
                numbered[name].append(code)
            number = numbered[name].index(code)
            name = f"{name}__{number}" if number else name
        numbers = _parameters(module.entry, instruction)
        leaves = {_leaf(argument_names[n]) for n in numbers if n < len(argument_names)}
        part = _PARTS.get(frozenset(leaves - {None}))  # type: ignore[arg-type]
        if part is not None:
            found[_in_ptx(name)] = part
    return found


def _in_ptx(name: str) -> str:
    return re.sub(r"[.\-]", "_", name)


def _parameters(entry: hlo.Computation, instruction: hlo.Instruction) -> Iterator[int]:
    """Numbers of the parameters among the operands, seen through views."""
    for name in instruction.operands:
        operand = entry.get(name)
        while operand is not None and operand.opcode in ("bitcast", "get-tuple-element"):
            operand = entry.get(operand.operands[0]) if operand.operands else None
        if operand is not None and operand.number is not None:
            yield operand.number


def _leaf(name: str) -> str | None:
    """The projection that a parameter is of; None for norms, caches and inputs."""
    *path, last = name.split(".")
    return path[-1] if last in ("weight", "scales", "zeros") and "norm" not in name else None


def times(seen: Iterator[tuple[str, str | None, float]], names: Mapping[str, str]) -> list[Time]:
    """Kernels by part, the one that takes most first."""
    found: dict[str, list[Any]] = defaultdict(lambda: [0, 0.0])
    for kernel, operation, us in seen:
        part = names.get(_in_ptx(operation or "")) or names.get(_in_ptx(kernel))
        part = part or re.sub(r"_+\d+$", "", kernel)
        found[part][0] += 1
        found[part][1] += us
    listed = [Time(part, calls, us) for part, (calls, us) in found.items()]
    return sorted(listed, key=lambda time: -time.us)

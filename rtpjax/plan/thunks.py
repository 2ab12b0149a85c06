"""What a compiled program has the host do: where it waits for the device, and what it launches.

XLA runs a program as a sequence of thunks, and writes it to the folder that `xla_dump_to` names
once its own passes are over (jaxlib 0.10 to 0.12 do it alike):

    000: kCommandBuffer [source | sink]
        001: kCustomKernel [...] input_reduce_fusion ...
    108: kConditional [...]
      true_branch:
        022: kCustomKernel ...

A command buffer is a CUDA graph: one launch, whatever is inside of it, and the device alone decides
on its conditionals and loops. Outside of one the host reads the predicate of a conditional, and of
a loop whose count is not known, which waits for all that the device was given before.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from rtpjax.plan.hlo import Module, known_trip_count

_THUNK = re.compile(r"^( *)(\d+): k(\w+)")
_NAMES = re.compile(r'profile_annotation: "([^"]*)"\s+thunk_id: (\d+)')
_NO_LAUNCH = ("CommandBuffer", "Conditional", "While", "Sequential")


@dataclasses.dataclass(frozen=True)
class HostWork:
    """What the host does for one run of a program.

    Attributes:
        waits: Names of the conditionals and loops for which it waits for the device.
        num_graphs: CUDA graphs that it launches, those in a branch or a loop counted once.
        num_launches: Kernels and copies that it launches one by one, likewise.
    """

    waits: tuple[str, ...]
    num_graphs: int
    num_launches: int


def read_dump(folder: Path, module: Module) -> HostWork:
    """The host's work for the program whose dump a folder has.

    Args:
        folder: What `xla_dump_to` named.
        module: The program.

    Raises:
        RuntimeError: XLA wrote no sequence of thunks, so nothing is known.
    """
    # Where no pass is on (graphs are off), there is only what the passes would begin with.
    sequences = list(folder.glob("*.thunk_sequence_after_thunk_passes.txt")) or list(
        folder.glob("*.thunk_sequence.txt")
    )
    metadata = list(folder.glob("*.thunk_metadata.txt"))
    if len(sequences) != 1 or len(metadata) != 1:
        raise RuntimeError(
            f"XLA wrote {len(sequences)} thunk sequences and {len(metadata)} lists of their names "
            "where one each was expected: this jaxlib dumps them otherwise than 0.10 to 0.12"
        )
    names = {int(number): name for name, number in _NAMES.findall(metadata[0].read_text())}
    return host_work(sequences[0].read_text(), names, module)


def host_work(sequence: str, names: dict[int, str], module: Module) -> HostWork:
    """The host's work, from a sequence of thunks and the names of their instructions."""
    waits, num_graphs, num_launches = [], 0, 0
    inside: int | None = None  # of the graph whose lines are read: its indentation
    for line in sequence.splitlines():
        found = _THUNK.match(line)
        if found is None:
            continue
        depth, number, kind = len(found[1]), int(found[2]), found[3]
        if inside is not None and depth > inside:
            continue
        inside = depth if kind == "CommandBuffer" else None
        num_graphs += kind == "CommandBuffer"
        num_launches += kind not in _NO_LAUNCH
        name = names.get(number, f"thunk {number}")
        if kind == "Conditional" or (kind == "While" and known_trip_count(module, name) is None):
            waits.append(name)
    return HostWork(tuple(waits), num_graphs, num_launches)

"""Experts' tensors as the model has them, of the ways in which checkpoints save them.

    in the file                                     in the model
    experts.0.gate_proj.weight [F, D], experts.1..  experts.gate_proj.weight [E, F, D]
    experts.gate_up_proj [E, 2 F, D]                experts.gate_proj.weight, experts.up_proj.weight
    experts.down_proj [E, D, F]                     experts.down_proj.weight

A slice of a stacked tensor is read from the files of its experts alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from rtpjax.checkpoint import Checkpoint, CheckpointView, TensorInfo

_ONE = re.compile(r"(?P<layer>.*\.experts)\.(?P<expert>\d+)\.(?P<rest>.*)")
_JOINED = re.compile(r"(?P<layer>.*\.experts)\.(?P<which>gate_up_proj|down_proj)")

# For each tensor of the model: the tensor in the file, and which rows of each expert's matrix.
_Part = tuple[str, slice]


class StackedExperts(CheckpointView):
    """A checkpoint whose experts are stacked; see rtpjax.checkpoint.Checkpoint.

    Names that do not make a whole stack (an expert is missing, or has another shape) stay as they
    are, and do not fit the model then.
    """

    def __init__(self, source: Checkpoint):
        super().__init__(source)
        self._stacks = _stacks(source.tensors)
        self._parts: dict[str, _Part] = {}
        in_stacks = {name for names in self._stacks.values() for name in names}
        tensors = {name: info for name, info in source.tensors.items() if name not in in_stacks}
        for name, names in self._stacks.items():
            one = source.tensors[names[0]]
            tensors[name] = TensorInfo(name, (len(names), *one.shape), one.dtype)
        for name in [name for name in tensors if _JOINED.fullmatch(name)]:
            for info, rows in _separate(tensors.pop(name)):
                tensors[info.name] = info
                self._parts[info.name] = name, rows
        self.tensors: Mapping[str, TensorInfo] = tensors

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See Checkpoint."""
        if name in self._parts:
            return self._read_rows(name, index)
        if name not in self._stacks:
            return self.source.read(name, index)
        experts, *rest = index or (slice(None),)
        names = self._stacks[name][experts]
        info = self.tensors[name]
        shards = [self.source.read(one, tuple(rest)) for one in names]
        return np.stack(shards) if shards else np.empty((0, *info.shape[1:]), info.dtype)

    def _read_rows(self, name: str, index: tuple[slice, ...] | None) -> np.ndarray:
        stored, rows = self._parts[name]
        experts, wanted, *rest = (*(index or ()), slice(None), slice(None))[
            : max(2, len(index or ()))
        ]
        begin, end, _ = wanted.indices(rows.stop - rows.start)
        within = slice(rows.start + begin, rows.start + end)
        return self.source.read(stored, (experts, within, *rest))

    def stored(self, names: Iterable[str]) -> list[str]:
        """Names under which tensors of the model stand in the files, each once."""
        stored: dict[str, None] = {}
        for name in names:
            whole = self._parts[name][0] if name in self._parts else name
            stored |= dict.fromkeys(self._stacks.get(whole, [whole]))
        return list(stored)


def with_stacked_experts(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as it is where its names are the model's, else a view of it with stacks."""
    is_other = any(_ONE.fullmatch(name) or _JOINED.fullmatch(name) for name in checkpoint.tensors)
    return StackedExperts(checkpoint) if is_other else checkpoint


def _stacks(tensors: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    """Names of the experts' tensors in order, by the name of the stack that they make."""
    found: dict[str, dict[int, str]] = {}
    for name in tensors:
        if match := _ONE.fullmatch(name):
            stack = f"{match['layer']}.{match['rest']}"
            found.setdefault(stack, {})[int(match["expert"])] = name
    return {
        stack: [names[expert] for expert in range(len(names))]
        for stack, names in found.items()
        if sorted(names) == list(range(len(names)))
        and len({(tensors[n].shape, tensors[n].dtype) for n in names.values()}) == 1
    }


def _separate(info: TensorInfo) -> list[tuple[TensorInfo, slice]]:
    """The model's tensors that a joined one has, and their rows of each expert's matrix."""
    match = _JOINED.fullmatch(info.name)
    assert match is not None
    num_experts, num_rows, width = info.shape
    names = ("gate_proj", "up_proj") if match["which"] == "gate_up_proj" else ("down_proj",)
    size = num_rows // len(names)
    return [
        (
            TensorInfo(f"{match['layer']}.{name}.weight", (num_experts, size, width), info.dtype),
            slice(i * size, (i + 1) * size),
        )
        for i, name in enumerate(names)
    ]

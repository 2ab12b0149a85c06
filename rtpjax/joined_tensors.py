"""Matrices that checkpoints save joined, as the model has them.

    in the file                                        in the model
    self_attn.qkv_proj.weight [(N + 2 K) H, D]         q_proj.weight, k_proj.weight, v_proj.weight
    mlp.gate_up_proj.weight [2 F, D]                   gate_proj.weight, up_proj.weight

What belongs to a matrix (a bias, scales) is cut likewise. A part is read by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rtpjax.checkpoint import Checkpoint, CheckpointView, TensorInfo

_JOINED = re.compile(
    r"(?P<layer>.*\.(?:self_attn|mlp))\.(?P<which>qkv_proj|gate_up_proj)\.(?P<of>.*)"
)


class SeparatedTensors(CheckpointView):
    """A checkpoint whose joined matrices are cut into the model's; see Checkpoint.

    Tensors whose rows are not those that config.json tells of stay as they are, and do not fit the
    model then.
    """

    def __init__(self, source: Checkpoint):
        super().__init__(source)
        self._parts: dict[str, tuple[str, slice]] = {}
        tensors: dict[str, TensorInfo] = {}
        for name, info in source.tensors.items():
            parts = _parts_of(name, info, source.config)
            tensors |= {one.name: one for one, _ in parts} or {name: info}
            self._parts |= {one.name: (name, rows) for one, rows in parts}
        self.tensors: Mapping[str, TensorInfo] = tensors

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See Checkpoint."""
        if name not in self._parts:
            return self.source.read(name, index)
        stored, rows = self._parts[name]
        wanted, *rest = index or (slice(None),)
        begin, end, _ = wanted.indices(rows.stop - rows.start)
        return self.source.read(stored, (slice(rows.start + begin, rows.start + end), *rest))

    def stored(self, names: Iterable[str]) -> list[str]:
        """Names under which tensors of the model stand in the files, each once."""
        return list(dict.fromkeys(self._parts.get(name, (name,))[0] for name in names))


def with_separate_tensors(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as it is where its names are the model's, else a view of it."""
    is_joined = any(_JOINED.fullmatch(name) for name in checkpoint.tensors)
    return SeparatedTensors(checkpoint) if is_joined else checkpoint


def _parts_of(
    name: str, info: TensorInfo, config: Mapping[str, Any]
) -> list[tuple[TensorInfo, slice]]:
    """The model's tensors that a joined one has, and their rows; none if it is not one."""
    match = _JOINED.fullmatch(name)
    if match is None:
        return []
    sizes = _sizes(match["which"], config)
    if not info.shape or info.shape[0] != sum(sizes.values()):
        return []
    parts, begin = [], 0
    for part, size in sizes.items():
        whole = TensorInfo(
            f"{match['layer']}.{part}.{match['of']}", (size, *info.shape[1:]), info.dtype
        )
        parts.append((whole, slice(begin, begin + size)))
        begin += size
    return parts


def _sizes(which: str, config: Mapping[str, Any]) -> dict[str, int]:
    """Rows of each part."""
    try:
        if which == "gate_up_proj":
            return dict.fromkeys(("gate_proj", "up_proj"), config["intermediate_size"])
        num_heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
        num_kv_heads = config.get("num_key_value_heads") or num_heads
        kv_size = num_kv_heads * head_dim
        return {"q_proj": num_heads * head_dim, "k_proj": kv_size, "v_proj": kv_size}
    except (KeyError, TypeError):  # config.json is checked, and its faults named, elsewhere
        return {}

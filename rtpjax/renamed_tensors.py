"""Tensors that a family's checkpoints name otherwise than the model, under the model's names.

    in the file (Mixtral)                              in the model
    layers.0.block_sparse_moe.experts.3.w1.weight      layers.0.mlp.experts.3.gate_proj.weight

A family says which (CausalLM.stored_names). Files that have the model's names already are read as
they are, and layers that predict further tokens (CausalLM.has_mtp_layers) are left out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

import numpy as np

from rtpjax.checkpoint import Checkpoint, CheckpointView, TensorInfo
from rtpjax.models.registry import CausalLM, architectures

logger = logging.getLogger(__name__)

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class RenamedTensors(CheckpointView):
    """A checkpoint whose tensors have the model's names; see Checkpoint.

    Where two tensors would get one name, that is refused as a tensor that stands there twice.
    """

    doubled: Mapping[str, tuple[str, ...]]

    def __init__(self, source: Checkpoint, family: type[CausalLM]):
        super().__init__(source)
        self._stored: dict[str, str] = {}
        doubled = dict(source.doubled)
        dropped = []
        for stored in source.tensors:
            name = model_name(stored, family.stored_names)
            if family.has_mtp_layers and _is_mtp(name, source.config):
                dropped.append(stored)
            elif name in self._stored:
                doubled[name] = (self._stored[name], stored)
            else:
                self._stored[name] = stored
        self.doubled = doubled
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, source.tensors[stored].shape, source.tensors[stored].dtype)
            for name, stored in self._stored.items()
        }
        if dropped:
            logger.info(
                "%s: %d tensors of layers that predict further tokens are not loaded",
                source.path,
                len(dropped),
            )

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See Checkpoint."""
        return self.source.read(self._stored[name], index)

    def stored(self, names: Iterable[str]) -> list[str]:
        """Names under which tensors of the model stand in the files, each once."""
        return list(dict.fromkeys(self._stored.get(name, name) for name in names))


def with_model_names(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as it is where its names are the model's, else a view of it."""
    names = checkpoint.config.get("architectures") or []
    family = architectures().get(names[0]) if len(names) == 1 else None
    if family is None or not (family.stored_names or family.has_mtp_layers):
        return checkpoint
    is_other = any(
        model_name(name, family.stored_names) != name
        or (family.has_mtp_layers and _is_mtp(name, checkpoint.config))
        for name in checkpoint.tensors
    )
    return RenamedTensors(checkpoint, family) if is_other else checkpoint


def model_name(stored: str, patterns: Mapping[str, str]) -> str:
    """The model's name of a tensor; patterns are a family's `stored_names`."""
    for pattern, replacement in patterns.items():
        stored = re.sub(pattern, replacement, stored)
    return stored


def _is_mtp(name: str, config: Mapping[str, object]) -> bool:
    layer, num_layers = _LAYER.match(name), config.get("num_hidden_layers")
    if layer is None or not isinstance(num_layers, int):
        return False
    further = config.get("num_nextn_predict_layers")
    num_further = further if isinstance(further, int) else 1
    return num_layers <= int(layer[1]) < num_layers + num_further

"""A checkpoint's tensors, checked against its model and laid out over the devices.

A checkpoint is anything with `tensors` and `read`; checkpoints_conv.readers opens them. Names are
Hugging Face's on both sides, so what the model declares is exactly what a checkpoint must have.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rtpjax.errors import CheckpointError
from rtpjax.lfs import refuse_pointers
from rtpjax.models import ParamSpec
from rtpjax.sharding import named_sharding

logger = logging.getLogger(__name__)

# Buffers that older versions of transformers saved, and that a model computes from its config.
_COMPUTED = re.compile(r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$")

# XLA's CPU client takes a host buffer over as it is only where it begins at such an address.
_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What a checkpoint says about one tensor: its Hugging Face name, shape and stored format."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


class Checkpoint(Protocol):
    """An opened checkpoint.

    Attributes:
        path: The folder or file.
        format: "safetensors", "gguf", "orbax" or "dummy".
        config: The dict of its config.json, or one made from GGUF metadata.
        tensors: By Hugging Face name.
        doubled: Names that stand in the checkpoint more than once, and where.
        files: The files that the weights and the config come from.
    """

    path: Path
    format: str
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    doubled: Mapping[str, tuple[str, ...]]
    files: tuple[Path, ...]

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """One tensor or a slice of it, in its stored format; maybe a view of the mapped file."""
        ...


class CheckpointView:
    """A checkpoint that has another one's tensors under the model's names; see Checkpoint.

    Attributes:
        source: The other one.
    """

    tensors: Mapping[str, TensorInfo]

    def __init__(self, source: Checkpoint):
        self.source = source
        self.path = source.path
        self.format = source.format
        self.config = source.config
        self.doubled = source.doubled
        self.files = source.files

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See Checkpoint."""
        raise NotImplementedError

    def stored(self, names: Iterable[str]) -> list[str]:
        """Names under which tensors of the model stand in the source, each once."""
        raise NotImplementedError


def as_stored(checkpoint: Checkpoint, names: list[str]) -> tuple[Checkpoint, list[str]]:
    """The checkpoint without views, and a model's tensors by the names that they have there."""
    while isinstance(checkpoint, CheckpointView):
        checkpoint, names = checkpoint.source, checkpoint.stored(names)
    return checkpoint, names


@runtime_checkable
class ShardedCheckpoint(Protocol):
    """A checkpoint that puts the shards of many tensors on the devices by itself."""

    def restore(self, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """The tensors, in the shape, format and sharding of their targets."""
        ...


def read_config(file: Path) -> dict[str, Any]:
    """The dict of a config.json.

    Raises:
        CheckpointError: It is not JSON, or no object, or a pointer of Git LFS.
    """
    refuse_pointers([file])
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file}: not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(config).__name__}.")
    return config


def load_params(
    checkpoint: Checkpoint,
    specs: Mapping[str, ParamSpec],
    mesh: Mesh,
    progress: Callable[[int], object] | None = None,
) -> dict[str, jax.Array]:
    """Loads a model's parameters; of each tensor a process reads only what its devices keep.

    Args:
        checkpoint: From checkpoints_conv.readers.open_checkpoint.
        specs: From rtpjax.models.abstract_state; they decide format and layout.
        mesh: Devices to lay the parameters out on.
        progress: Called with the bytes of each tensor when it has been read (tqdm's `update`);
            they add up to `params_bytes(specs)`.

    Returns:
        The parameters by name, in the order of specs.

    Raises:
        CheckpointError: The checkpoint does not fit the model (check_tensors).
    """
    check_tensors(checkpoint, specs)
    shardings = {name: named_sharding(mesh, spec.axes, spec.shape) for name, spec in specs.items()}
    if isinstance(checkpoint, ShardedCheckpoint):
        targets = {
            name: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=shardings[name])
            for name, spec in specs.items()
        }
        restored = checkpoint.restore(targets)
        if progress is not None:
            progress(params_bytes(specs))
        return {
            name: restored[name] + spec.offset if spec.offset else restored[name]
            for name, spec in specs.items()
        }
    params = {}
    for name, spec in specs.items():
        params[name] = jax.make_array_from_callback(
            spec.shape, shardings[name], _shard_reader(checkpoint, name, spec)
        )
        if progress is not None:
            progress(_num_bytes(spec))
    return params


def params_bytes(specs: Mapping[str, ParamSpec]) -> int:
    """Bytes of all parameters in the formats that the model keeps them in."""
    return sum(map(_num_bytes, specs.values()))


def check_tensors(
    checkpoint: Checkpoint, specs: Mapping[str, ParamSpec], not_needed: Collection[str] = ()
) -> None:
    """Accounts for every tensor on both sides.

    Buffers that the model computes itself, and the output matrix of a model that shares it with the
    embedding, may be there; they are named in the log and not read.

    Args:
        checkpoint: What is there.
        specs: What must be there.
        not_needed: Further names that may be there.

    Raises:
        CheckpointError: Lists every tensor that is missing, unexpected, misshapen or doubled.
    """
    tensors = checkpoint.tensors
    extra = [name for name in tensors if name not in specs]
    ignored = [name for name in extra if _is_harmless(name) or name in not_needed]
    problems = [
        *_listed("missing", [name for name in specs if name not in tensors]),
        *_listed("unexpected", [name for name in extra if name not in ignored]),
        *_listed("misshapen", _misfits(tensors, specs)),
        *_listed("doubled", [f"{n} (in {', '.join(w)})" for n, w in checkpoint.doubled.items()]),
    ]
    if problems:
        raise CheckpointError(
            f"{checkpoint.path}: the checkpoint does not fit the model in its config "
            f"({len(specs)} tensors expected, {len(tensors)} found):\n" + "\n".join(problems) + "\n"
            "Check that config.json belongs to these weights and that every file is there."
        )
    if ignored:
        logger.info("%s: not needed, not loaded: %s", checkpoint.path, ", ".join(ignored))


def _is_harmless(name: str) -> bool:
    # An lm_head that the model does not declare is one that it ties to the embedding.
    return name == "lm_head.weight" or _COMPUTED.search(name) is not None


def _misfits(tensors: Mapping[str, TensorInfo], specs: Mapping[str, ParamSpec]) -> list[str]:
    misfits = []
    for name, spec in specs.items():
        info = tensors.get(name)
        if info is None:
            continue
        if info.shape != spec.shape:
            misfits.append(f"{name}: expected {list(spec.shape)}, found {list(info.shape)}")
        elif not jnp.issubdtype(spec.dtype, jnp.floating) or spec.dtype.itemsize == 1:
            # Quantized numbers are taken as they are.
            if info.dtype != spec.dtype:
                misfits.append(f"{name}: expected {spec.dtype}, found {info.dtype}")
        elif not jnp.issubdtype(info.dtype, jnp.floating):
            misfits.append(f"{name}: expected floating-point values, found {info.dtype}")
    return misfits


def _listed(problem: str, lines: Sequence[str]) -> list[str]:
    return [f"  {problem} ({len(lines)}):", *(f"    {line}" for line in lines)] if lines else []


def _num_bytes(spec: ParamSpec) -> int:
    return math.prod(spec.shape) * spec.dtype.itemsize


def _shard_reader(
    checkpoint: Checkpoint, name: str, spec: ParamSpec
) -> Callable[[tuple[slice, ...] | None], np.ndarray]:
    """The callback of make_array_from_callback; devices that keep the same slice share one read."""
    read: dict[str, np.ndarray] = {}

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        key = repr(index)
        if key not in read:
            read[key] = _private_copy(checkpoint.read(name, index), spec.dtype)
            if spec.offset:
                read[key] += spec.offset
        return read[key]

    return shard


def _private_copy(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A cast copy that begins at an address XLA can take over without copying once more.

    Never a view of the mapped file: XLA would keep it, and a file that is replaced in place would
    change the weights of a running server, or end it with SIGBUS.
    """
    num_bytes = values.size * dtype.itemsize
    buffer = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    begin = -buffer.ctypes.data % _ALIGNMENT
    copy = buffer[begin : begin + num_bytes].view(dtype).reshape(values.shape)
    np.copyto(copy, values, casting="unsafe")
    return copy

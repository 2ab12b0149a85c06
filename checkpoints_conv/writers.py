"""Writes the weights of a checkpoint, one tensor after another or in groups of a few gigabytes.

A writer never holds more than one group; safetensors are streamed and hold one tensor.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

from checkpoints_conv.readers.safetensors import DTYPES, INDEX_NAME
from rtpjax.checkpoint import TensorInfo

MAX_GROUP_BYTES = 4_000_000_000

# The header is padded so that the data, and with it the first tensor, begins at a multiple of this.
_ALIGNMENT = 64

_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Source:
    """The tensors to write.

    Attributes:
        tensors: Name, shape and format of each as it is to be written.
        read: Returns one, in that format.
        progress: Called with the bytes of each tensor when it has been written.
        shardings: For orbax: tensors that are stored in the shards of so many devices.
    """

    tensors: Sequence[TensorInfo]
    read: Callable[[str], np.ndarray]
    progress: Callable[[int], object]
    shardings: Mapping[str, NamedSharding] = dataclasses.field(default_factory=dict)


def num_bytes(info: TensorInfo) -> int:
    """Bytes of a tensor's values."""
    return math.prod(info.shape) * info.dtype.itemsize


def groups(
    tensors: Sequence[TensorInfo], max_bytes: int = MAX_GROUP_BYTES
) -> Iterator[list[TensorInfo]]:
    """Cuts the sequence before a group grows past max_bytes; a larger tensor has its own."""
    group: list[TensorInfo] = []
    for info in tensors:
        if group and sum(map(num_bytes, group)) + num_bytes(info) > max_bytes:
            yield group
            group = []
        group.append(info)
    if group:
        yield group


def write_safetensors(
    folder: Path, source: Source, max_bytes: int = MAX_GROUP_BYTES
) -> dict[str, str]:
    """Writes model.safetensors, or several files and their index.

    Returns:
        The file that each tensor is in, by name.
    """
    shards = list(groups(source.tensors, max_bytes))
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        is_single = len(shards) == 1
        file = "model" if is_single else f"model-{number:05d}-of-{len(shards):05d}"
        _write_file(folder / f"{file}.safetensors", shard, source)
        files |= {info.name: f"{file}.safetensors" for info in shard}
    if len(shards) > 1:
        total = sum(map(num_bytes, source.tensors))
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=1) + "\n")
    return files


def _write_file(path: Path, tensors: Sequence[TensorInfo], source: Source) -> None:
    # transformers refuses a file whose metadata does not say "pt".
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for info in tensors:
        begin, end = end, end + num_bytes(info)
        header[info.name] = {
            "dtype": _CODES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [begin, end],
        }
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for info in tensors:
            values = np.asarray(source.read(info.name), order="C")  # also of no dimensions
            assert values.shape == info.shape and values.dtype == info.dtype, info
            file.write(values.reshape(-1).view(np.uint8).data)
            source.progress(num_bytes(info))


def write_orbax(folder: Path, source: Source, max_bytes: int = MAX_GROUP_BYTES) -> dict[str, str]:
    """Writes one orbax checkpoint per group, each a dict of name -> array.

    Returns:
        The group (a subfolder) that each tensor is in, by name.
    """
    # It takes 2 s to import, and few conversions need it.
    from checkpoints_conv.readers.orbax import save_group

    files: dict[str, str] = {}
    for number, group in enumerate(groups(source.tensors, max_bytes), start=1):
        name = f"weights-{number:05d}"
        tensors = {info.name: source.read(info.name) for info in group}
        save_group(folder / name, tensors, source.shardings)
        files |= {info.name: name for info in group}
        source.progress(sum(map(num_bytes, group)))
    return files


WRITERS: Mapping[str, Callable[[Path, Source], dict[str, str]]] = {
    "safetensors": write_safetensors,
    "orbax": write_orbax,
}

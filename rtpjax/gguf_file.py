"""The container of a GGUF file: its metadata, and where each tensor's bytes stand.

    "GGUF" | version | num_tensors | num_metadata | metadata | tensor infos | padding | data

The gguf package has a reader too, but it makes several numpy arrays for each of a vocabulary's
strings (2.6 s for SmolLM2's 98,000, against 0.2 s here), and a truncated file is an IndexError.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import re
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from rtpjax.errors import CheckpointError
from rtpjax.lfs import refuse_pointers

_SUPPORTED_VERSIONS = (2, 3)
_MAX_DIMS = 4
_JOIN = "Join the parts first: llama-gguf-split --merge FIRST_PART JOINED.gguf"
_PART_NAME = re.compile(r"(.+)-\d{5}-of-\d{5}\.gguf")

# GGUFValueType -> little-endian struct format
_SCALARS = {
    gguf.GGUFValueType.UINT8: "B",
    gguf.GGUFValueType.INT8: "b",
    gguf.GGUFValueType.UINT16: "H",
    gguf.GGUFValueType.INT16: "h",
    gguf.GGUFValueType.UINT32: "I",
    gguf.GGUFValueType.INT32: "i",
    gguf.GGUFValueType.FLOAT32: "f",
    gguf.GGUFValueType.BOOL: "?",
    gguf.GGUFValueType.UINT64: "Q",
    gguf.GGUFValueType.INT64: "q",
    gguf.GGUFValueType.FLOAT64: "d",
}


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file.

    Attributes:
        name: As in the file (`blk.0.attn_q.weight`).
        shape: In numpy's order, the contiguous axis last (the file has it first).
        type: How the values are encoded.
        offset: Of its first byte, from the beginning of the file.
        num_bytes: Encoded size.
    """

    name: str
    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType
    offset: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """A parsed GGUF file; `data` is the whole file, memory-mapped uint8."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    data: np.ndarray


def read_gguf(path: Path) -> GgufFile:
    """Parses the header; tensor data is only mapped.

    Raises:
        CheckpointError: Not a GGUF file that can be read, truncated, or one part of several.
    """
    refuse_pointers([path])
    size = path.stat().st_size
    if size < 24:
        raise CheckpointError(f"{path}: truncated: {size} bytes, a GGUF header has at least 24.")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = _Cursor(path, mapped)
    num_tensors, num_metadata = _read_preamble(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(num_metadata):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    if metadata.get("split.count", 1) > 1:
        part, count = metadata.get("split.no", 0) + 1, metadata["split.count"]
        raise CheckpointError(f"{path}: part {part} of {count} of a split GGUF. {_JOIN}")
    infos = [_read_tensor_info(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    start = math.ceil(cursor.offset / alignment) * alignment
    tensors = tuple(dataclasses.replace(info, offset=info.offset + start) for info in infos)
    _check_size(path, tensors, size)
    return GgufFile(path, metadata, tensors, np.frombuffer(mapped, dtype=np.uint8))


def only_gguf(folder: Path) -> Path | None:
    """The .gguf file of a folder, None if there is none.

    Raises:
        CheckpointError: There are several, of one model or of many.
    """
    files = sorted(folder.glob("*.gguf"))
    if len(files) <= 1:
        return files[0] if files else None
    named = [_PART_NAME.fullmatch(file.name) for file in files]
    if all(named) and len({match[1] for match in named if match}) == 1:
        raise CheckpointError(f"{folder}: a split GGUF in {len(files)} parts. {_JOIN}")
    names = ", ".join(file.name for file in files)
    raise CheckpointError(f"{folder}: {len(files)} .gguf files; name one of them: {names}.")


class _Cursor:
    """Reads values one after another, and says so when the file ends too early."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path = path
        self._data = data
        self.offset = 0

    def take(self, num_bytes: int) -> int:
        """Steps over num_bytes; returns where they begin."""
        begin = self.offset
        if begin + num_bytes > len(self._data):
            raise CheckpointError(
                f"{self.path}: truncated or damaged: the header expected at least "
                f"{begin + num_bytes} bytes, the file has {len(self._data)}. Download it again."
            )
        self.offset = begin + num_bytes
        return begin

    def scalar(self, code: str) -> Any:
        layout = struct.Struct("<" + code)
        return layout.unpack_from(self._data, self.take(layout.size))[0]

    def string(self) -> str:
        num_bytes = self.scalar("Q")
        begin = self.take(num_bytes)
        try:
            return self._data[begin : begin + num_bytes].decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{self.path}: damaged: the string at byte {begin} is not UTF-8."
            ) from error

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[gguf.GGUFValueType(kind)])
        if kind == gguf.GGUFValueType.STRING:
            return self.string()
        if kind == gguf.GGUFValueType.ARRAY:
            return self._array()
        raise CheckpointError(
            f"{self.path}: damaged: unknown value type {kind} at byte {self.offset}."
        )

    def _array(self) -> list[Any]:
        kind, length = self.scalar("I"), self.scalar("Q")
        if kind not in _SCALARS:
            return [self.value(kind) for _ in range(length)]
        dtype = np.dtype("<" + _SCALARS[gguf.GGUFValueType(kind)])
        begin = self.take(length * dtype.itemsize)
        return np.frombuffer(self._data, dtype, length, begin).tolist()


def _read_preamble(cursor: _Cursor) -> tuple[int, int]:
    """(number of tensors, number of metadata entries)."""
    path = cursor.path
    magic, version = cursor.scalar("I"), cursor.scalar("I")
    if magic != gguf.GGUF_MAGIC:
        raise CheckpointError(f"{path}: not a GGUF file (it does not begin with `GGUF`).")
    if version not in _SUPPORTED_VERSIONS:
        raise CheckpointError(
            f"{path}: GGUF version {version}; versions {_SUPPORTED_VERSIONS}, little-endian, can "
            "be read. Convert the model again with a current llama.cpp."
        )
    return cursor.scalar("Q"), cursor.scalar("Q")


def _read_tensor_info(cursor: _Cursor) -> GgufTensor:
    """One tensor, its offset still relative to the beginning of the data."""
    name, num_dims = cursor.string(), cursor.scalar("I")
    if num_dims > _MAX_DIMS:
        raise CheckpointError(f"{cursor.path}: damaged: tensor {name} has {num_dims} dimensions.")
    shape = tuple(cursor.scalar("Q") for _ in range(num_dims))[::-1]
    kind, offset = cursor.scalar("I"), cursor.scalar("Q")
    if kind not in gguf.GGML_QUANT_SIZES:
        raise CheckpointError(f"{cursor.path}: tensor {name} has the unknown type {kind}.")
    encoding = gguf.GGMLQuantizationType(kind)
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[encoding]
    if shape and shape[-1] % block_size:
        raise CheckpointError(
            f"{cursor.path}: damaged: tensor {name} has rows of {shape[-1]} values, "
            f"{encoding.name} packs {block_size} at a time."
        )
    num_bytes = math.prod(shape) // block_size * block_bytes
    return GgufTensor(name, shape, encoding, offset, num_bytes)


def _check_size(path: Path, tensors: tuple[GgufTensor, ...], size: int) -> None:
    expected = max((tensor.offset + tensor.num_bytes for tensor in tensors), default=0)
    if size < expected:
        raise CheckpointError(
            f"{path}: truncated: expected {expected} bytes, the file has {size}. Download it again."
        )

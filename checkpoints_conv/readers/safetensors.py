"""Reads Hugging Face folders: config.json and one or more memory-mapped .safetensors files.

A file is: 8 bytes, the header's length; the header, JSON; the tensors' bytes without gaps.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rtpjax.checkpoint import TensorInfo
from rtpjax.errors import CheckpointError
from rtpjax.lfs import refuse_pointers

INDEX_NAME = "model.safetensors.index.json"

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

# Larger than the header of any model; the safetensors library has the same limit.
_MAX_HEADER_BYTES = 100_000_000


@dataclasses.dataclass(frozen=True)
class _Entry:
    info: TensorInfo
    begin: int  # of its bytes, from the beginning of the file
    end: int


class SafetensorsCheckpoint:
    """A folder of safetensors files; see rtpjax.checkpoint.Checkpoint."""

    format = "safetensors"

    def __init__(self, path: Path, config: dict[str, Any]):
        """Reads all headers.

        Raises:
            CheckpointError: A file is missing, truncated or not what its header says.
        """
        self.path = path
        self.config = config
        weights = _weight_files(path)
        refuse_pointers(weights)
        self.files = (path / "config.json", *weights)
        self._entries: dict[str, tuple[Path, _Entry]] = {}
        doubled: dict[str, tuple[str, ...]] = {}
        for file in weights:
            for entry in _read_header(file):
                name = entry.info.name
                if name in self._entries:
                    seen = doubled.get(name, (self._entries[name][0].name,))
                    doubled[name] = (*seen, file.name)
                self._entries[name] = (file, entry)
        # After the headers: an empty file cannot be mapped, and has its message by now.
        self._data = {file: np.memmap(file, np.uint8, mode="r") for file in weights}
        self.doubled: Mapping[str, tuple[str, ...]] = doubled
        self.tensors: Mapping[str, TensorInfo] = {
            name: entry.info for name, (_, entry) in self._entries.items()
        }

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """A view of the mapped file."""
        file, entry = self._entries[name]
        values = self._data[file][entry.begin : entry.end].view(entry.info.dtype)
        return np.asarray(values.reshape(entry.info.shape))[index or ()]


def _weight_files(path: Path) -> list[Path]:
    """The files that the index names, or else all."""
    index = path / INDEX_NAME
    if not index.exists():
        return sorted(path.glob("*.safetensors"))
    refuse_pointers([index])
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index}: not a safetensors index: {error!r}.") from error
    outside = sorted(name for name in names if Path(name).name != name)
    if outside:
        raise CheckpointError(f"{index}: names files outside its folder: {outside}.")
    missing = sorted(name for name in names if not (path / name).exists())
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of the {len(names)} files in {INDEX_NAME} are missing: "
            f"{', '.join(missing)}. Download them."
        )
    return [path / name for name in sorted(names)]


def _read_header(file: Path) -> list[_Entry]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        prefix = opened.read(8)
        header_bytes = int.from_bytes(prefix, "little")
        start = 8 + header_bytes
        if len(prefix) == 8 and header_bytes > _MAX_HEADER_BYTES:
            raise CheckpointError(f"{file}: not safetensors (a header of {header_bytes} bytes).")
        if len(prefix) < 8 or size < start:
            raise _truncated(file, max(start, 8), size)
        raw = opened.read(header_bytes)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        entries = [_entry(name, fields, start) for name, fields in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a safetensors header: {error!r}.") from error
    _check_layout(file, entries, start, size)
    return entries


def _entry(name: str, fields: Mapping[str, Any], start: int) -> _Entry:
    begin, end = fields["data_offsets"]
    info = TensorInfo(name, tuple(map(int, fields["shape"])), DTYPES[fields["dtype"]])
    return _Entry(info, start + int(begin), start + int(end))


def _check_layout(file: Path, entries: list[_Entry], start: int, size: int) -> None:
    """Every tensor has the bytes its shape needs, and together they fill the file."""
    at = start
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        info = entry.info
        num_bytes = math.prod(info.shape) * info.dtype.itemsize
        if entry.begin != at or entry.end - entry.begin != num_bytes:
            raise CheckpointError(
                f"{file}: damaged: {info.name} ({info.dtype} {list(info.shape)}) should take bytes "
                f"{at} to {at + num_bytes}, the header says {entry.begin} to {entry.end}."
            )
        at = entry.end
    if size < at:
        raise _truncated(file, at, size)
    if size > at:
        raise CheckpointError(f"{file}: damaged: expected {at} bytes, the file has {size}.")


def _truncated(file: Path, expected: int, size: int) -> CheckpointError:
    return CheckpointError(
        f"{file}: truncated: expected {expected} bytes, the file has {size}. Download it again."
    )

"""Reads and writes our orbax folders: groups of tensors, restored onto any mesh.

Source: https://orbax.readthedocs.io/en/latest/guides/checkpoint/orbax_checkpoint_101.html
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

from checkpoints_conv.manifest import Manifest
from rtpjax.checkpoint import TensorInfo
from rtpjax.errors import CheckpointError

# Small enough that a device which keeps an eighth of a matrix need not read all of it.
_CHUNK_BYTES = 16_000_000


class OrbaxCheckpoint:
    """A folder written by write_orbax; see rtpjax.checkpoint.Checkpoint."""

    format = "orbax"

    def __init__(self, path: Path, config: dict[str, Any], manifest: Manifest):
        """Takes the tensors' names and shapes from the manifest.

        Raises:
            CheckpointError: A group that the manifest names is missing.
        """
        self.path = path
        self.config = config
        self._group = {name: entry["file"] for name, entry in manifest.tensors.items()}
        missing = [name for name in sorted(set(self._group.values())) if not (path / name).is_dir()]
        if missing:
            raise CheckpointError(
                f"{path}: missing: {', '.join(missing)}. Convert the model again."
            )
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, tuple(entry["shape"]), _dtype(entry["dtype"]))
            for name, entry in manifest.tensors.items()
        }
        self.doubled: Mapping[str, tuple[str, ...]] = {}
        parts = [file for name in set(self._group.values()) for file in (path / name).rglob("*")]
        self.files = (path / "config.json", *sorted(file for file in parts if file.is_file()))

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """The tensor or a slice of it; all of it is read either way (restore reads shards)."""
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        values = self._restore_group(self._group[name], {name: as_numpy})[name]
        return np.asarray(values)[index or ()]

    def restore(self, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """The tensors, each device reading its own shards.

        Args:
            targets: Shape, format and sharding of each, by name.
        """
        restored: dict[str, jax.Array] = {}
        for group in dict.fromkeys(self._group[name] for name in targets):
            wanted = {
                name: ocp.ArrayRestoreArgs(
                    sharding=target.sharding, global_shape=target.shape, dtype=target.dtype
                )
                for name, target in targets.items()
                if self._group[name] == group
            }
            restored |= self._restore_group(group, wanted)
        return restored

    def _restore_group(self, group: str, wanted: Mapping[str, ocp.RestoreArgs]) -> dict[str, Any]:
        args = ocp.args.PyTreeRestore(
            item=dict.fromkeys(wanted, 0), restore_args=dict(wanted), partial_restore=True
        )
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                return checkpointer.restore(self.path.absolute() / group, args=args)
        except (ValueError, OSError, KeyError) as error:
            raise CheckpointError(
                f"{self.path / group}: cannot be read: {error}. Convert the model again."
            ) from error


def save_group(
    folder: Path, tensors: Mapping[str, np.ndarray], shardings: Mapping[str, NamedSharding]
) -> None:
    """Writes one orbax checkpoint; returns when it is on the disk.

    Args:
        folder: To write.
        tensors: By name.
        shardings: No stored chunk crosses the border of a shard of these.

    Raises:
        OSError: It cannot be written.
    """
    save_args = {name: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES) for name in tensors}
    placed = {
        name: jax.device_put(values, shardings[name]) if name in shardings else values
        for name, values in tensors.items()
    }
    args = ocp.args.PyTreeSave(item=placed, save_args=save_args)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        try:
            checkpointer.save(folder.absolute(), args=args)
        except ValueError as error:
            # What tensorstore makes of a full disk.
            raise OSError(str(error)) from error


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))

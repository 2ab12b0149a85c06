"""manifest.json of a converted folder: where it came from and what is in it.

It is written last, so a folder that has one is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rtpjax.errors import CheckpointError
from rtpjax.lfs import refuse_pointers

MANIFEST_NAME = "manifest.json"
VERSION = 1

_READ_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a conversion did.

    Attributes:
        source: Absolute path of what was converted.
        source_sha256: Of each source file, by name.
        format: "safetensors" or "orbax".
        dtype: As asked for: "auto" or the name of a format.
        tensors: By name: shape, dtype and the file or group it is in.
        tool: Name and version of what wrote the folder.
        version: Of this file's layout.
    """

    source: str
    source_sha256: Mapping[str, str]
    format: str
    dtype: str
    tensors: Mapping[str, Mapping[str, Any]]
    tool: str
    version: int = VERSION


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, None if it is not one that we converted.

    Raises:
        CheckpointError: The manifest is damaged or of a later version.
    """
    file = folder / MANIFEST_NAME
    if not file.exists():
        return None
    refuse_pointers([file])
    try:
        fields = json.loads(file.read_text())
        if fields["version"] != VERSION:
            raise CheckpointError(
                f"{file}: version {fields['version']}, expected {VERSION}. Convert the model again."
            )
        return Manifest(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not a manifest of a conversion: {error!r}.") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes manifest.json."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1)
    (folder / MANIFEST_NAME).write_text(text + "\n")


def sha256_of(files: Iterable[Path]) -> dict[str, str]:
    """Hex digests by file name."""
    return {file.name: _sha256(file) for file in files}


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()

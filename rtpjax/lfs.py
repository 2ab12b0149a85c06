"""Files that Git LFS has not fetched: their place has a few lines of text instead."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rtpjax.errors import CheckpointError

_MARK = b"version https://git-lfs.github.com/spec/"
_MAX_BYTES = 1024  # of a pointer, by its specification


def is_pointer(file: Path) -> bool:
    """Whether a file is a pointer in place of what its name says."""
    if not file.is_file() or file.stat().st_size > _MAX_BYTES:
        return False
    return file.read_bytes().startswith(_MARK)


def refuse_pointers(files: Iterable[Path]) -> None:
    """Called with each file of a checkpoint before it is read; those that are missing are skipped.

    Raises:
        CheckpointError: One or more of them are pointers.
    """
    found = [file for file in files if is_pointer(file)]
    if found:
        names = ", ".join(file.name for file in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise CheckpointError(
            f"{found[0].parent}: {names}{more}: a Git LFS pointer, not the file itself. Run "
            "`git lfs pull` in that folder."
        )

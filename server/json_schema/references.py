"""Where a `$ref` leads. Everything that follows one does it here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

_MAX_SEARCHED = 500


def follow(reference: Any, root: Any) -> Any:
    """The part of a schema that a reference names.

    Args:
        reference: A `$ref`: `#`, a pointer `#/$defs/a` (RFC 6901, percent-encoded where it must
            be), the name of an `$anchor`, or the `$id` of the schema or of a part of it.
        root: The whole schema.

    Raises:
        LookupError: There is no such part, or it is outside of the schema.
    """
    if not isinstance(reference, str):
        raise LookupError(reference)
    base, _, fragment = reference.partition("#")
    part = root if not base or _id_of(root) == base else _with(root, ("$id", "id"), base)
    fragment = unquote(fragment)
    if not fragment:
        return part
    if not fragment.startswith("/"):
        return _with(part, ("$anchor", "$id", "id"), fragment, f"#{fragment}")
    for name in place_of(reference):
        part = _child(part, name)
    return part


def place_of(reference: str) -> tuple[str, ...]:
    """The keys in the pointer of a reference; none where it has none."""
    fragment = unquote(reference.partition("#")[2])
    names = fragment[1:].split("/") if fragment.startswith("/") else []
    return tuple(name.replace("~1", "/").replace("~0", "~") for name in names)


def _child(part: Any, name: str) -> Any:
    if isinstance(part, Mapping):
        return part[name]
    if isinstance(part, list) and name.isascii() and name.isdigit():
        return part[int(name)]
    raise LookupError(name)


def _id_of(schema: Any) -> Any:
    found = schema.get("$id", schema.get("id")) if isinstance(schema, Mapping) else None
    return found.removesuffix("#") if isinstance(found, str) else None


def _with(root: Any, keys: tuple[str, ...], *values: str) -> Any:
    """The first part that has one of the values under one of the keys."""
    for part in _parts(root):
        if any(part.get(key) in values for key in keys if isinstance(part.get(key), str)):
            return part
    raise LookupError(values[0])


def _parts(root: Any) -> Iterator[Mapping[str, Any]]:
    """The objects in a value, the outer ones first."""
    waiting, num_seen = deque([root]), 0
    while waiting and num_seen < _MAX_SEARCHED:
        part = waiting.popleft()
        num_seen += 1
        if isinstance(part, Mapping):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)

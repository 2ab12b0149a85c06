"""The types of JSON schema, and what else they are called."""

from __future__ import annotations

from typing import Any

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
# In other languages, and by clients that translate from them.
_NAMES = {
    "object": ("dict", "map", "struct", "record"),
    "array": ("list", "tuple", "set"),
    "string": ("str", "text"),
    "number": ("float", "double", "decimal"),
    "integer": ("int", "long"),
    "boolean": ("bool",),
    "null": ("none", "nonetype", "nil"),
}
_KINDS = {name: kind for kind, names in _NAMES.items() for name in (kind, *names)}
_ANY = frozenset({"any", "unknown", "mixed"})


def kind_of(name: Any) -> str | None:
    """The type that a name means, "" for any; None if it means none."""
    if not isinstance(name, str):
        return None
    return "" if name.lower() in _ANY else _KINDS.get(name.lower())

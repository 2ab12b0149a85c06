"""JSON values and names in the words of an error message."""

from __future__ import annotations

from typing import Any

_MAX_NAME_CHARS = 80


def quoted(value: Any) -> str:
    """A name or an id in a sentence, shortened: there is no function 'nope'."""
    if not isinstance(value, str):
        return describe(value)
    return repr(value if len(value) <= 40 else value[:40] + "...")


def describe(value: Any) -> str:
    """Names a JSON value for an error message, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return f"the string {quoted(value)}"
    if isinstance(value, int) and abs(value) > 10**20:
        return f"a number of {value.bit_length()} bits"
    return f"{value!r}"


def shortened(name: str) -> str:
    """A caller's name in a path. Names can have megabytes, and paths are made by the thousand."""
    return name if len(name) <= _MAX_NAME_CHARS else f"{name[:_MAX_NAME_CHARS]}..."

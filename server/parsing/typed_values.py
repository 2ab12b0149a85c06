"""Values that a model writes as plain text -> JSON, by the schema of their parameter."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from typing import Any

from server.json_schema.references import follow
from server.json_schema.types import kind_of
from server.parsing.source import Pieces, joined

_PYTHON = {"True": "true", "False": "false", "None": "null"}


def spelled(text: str) -> str:
    """Text as the inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def types_of(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """The JSON types that a schema allows; none when it does not say."""
    found: set[str] = set()
    # Each part once: schemas can refer to each other in circles, and by many ways.
    seen: set[int] = set()
    left = [schema]
    while left:
        part = left.pop()
        if not isinstance(part, Mapping) or id(part) in seen:
            continue
        seen.add(id(part))
        found.update(_own_types(part))
        for key in ("anyOf", "oneOf", "allOf"):
            parts = part.get(key)
            left += parts if isinstance(parts, list) else ()
        left.append(_target(part.get("$ref"), root))
    return frozenset(found)


def _target(reference: Any, root: Mapping[str, Any]) -> Any:
    """What a reference into the same schema stands for; None if it is none."""
    try:
        return follow(reference, root)
    except (LookupError, ValueError):
        return None


def _own_types(schema: Mapping[str, Any]) -> Iterator[str]:
    names = schema.get("type")
    if isinstance(names, str | list):
        names = [names] if isinstance(names, str) else names
        kinds = ("null" if name is None else kind_of(name) for name in names)
        yield from (kind for kind in kinds if kind)
    else:
        values = schema["enum"] if isinstance(schema.get("enum"), list) else []
        values = [*values, schema["const"]] if "const" in schema else values
        if values and all(isinstance(value, str) for value in values):
            yield "string"


def as_json(text: str, types: frozenset[str]) -> str:
    """The JSON that a value's text means; text that is no value of its type becomes a string."""
    bare = text.strip()
    literal = _literal(bare)
    if literal is None:
        return json.dumps(text, ensure_ascii=False)
    if "string" in types:
        kind = {"{": "object", "[": "array"}.get(literal[0], "null" if literal == "null" else "")
        return literal if kind in types else json.dumps(text, ensure_ascii=False)
    return literal


def _literal(text: str) -> str | None:
    """The text if it is JSON, or the JSON of the same value if it is Python, else None."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return python_literal(text)
    return text


def python_literal(text: str) -> str | None:
    """The JSON of a Python literal, or None."""
    if text in _PYTHON:
        return _PYTHON[text]
    try:
        value = ast.literal_eval(text)
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _refuse(name: str) -> None:
    raise ValueError(name)


def value_pieces(pieces: Pieces[str], types: frozenset[str], *, trims_lines: bool) -> Pieces[str]:
    """The JSON of a value whose text comes in pieces; strings are passed on while they come.

    Args:
        pieces: The text; what their generator returns is returned.
        types: What the schema allows.
        trims_lines: Whether the line breaks after the opening and before the closing mark are no
            part of the value.
    """
    if types != {"string"}:
        text, end = yield from joined(pieces)
        if trims_lines:
            text = text.removeprefix("\n").removesuffix("\n")
        yield as_json(text, types)
        return end
    yield '"'
    is_first, held = True, ""
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            yield ("" if trims_lines and held == "\n" else spelled(held)) + '"'
            return end.value
        if not piece:
            yield piece
            continue
        if is_first and trims_lines:
            piece = piece.removeprefix("\n")
        is_first = False
        text, held = held + piece, ""
        if trims_lines and text.endswith("\n"):
            text, held = text[:-1], "\n"
        yield spelled(text)

"""A JSON schema of a request -> what of it answers are held to, and what is left out.

What is taken compiles: the grammar compiler itself is asked. Where it refuses a schema, the part
that it refuses is looked for, and as little as possible is left out of it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rtpjax.engine.grammar_check import schema_error
from server.json_schema.finite import endless
from server.json_schema.normal_form import NormalForm, Place, normal_form
from server.protocol.body import describe, field_error, field_path

logger = logging.getLogger(__name__)

_MAX_SHOWN = 20
_MAX_SHOWN_CHARS = 200
# In a larger schema nobody looks for what it is refused for; in others text may be compiled for it
# of this many lengths of the schema.
_MAX_MENDED_CHARS = 64 * 1024
_MAX_LENGTHS = 12
_FREE_CHARS = 20_000
# What is given up first when something must be.
_KEYWORDS = (
    "pattern", "format", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
    "patternProperties", "required", "additionalProperties", "allOf", "anyOf", "oneOf",
    "enum", "const", "$ref", "items", "prefixItems", "properties", "type",
)  # fmt: skip
_CANNOT = "this cannot be enforced"
_TOO_MUCH = "too much of the schema cannot be enforced"
_REASONS = (
    (_TOO_MUCH, _TOO_MUCH),
    ("Unsatisfiable", "no value fits it together with the rest"),
    ("no text", "no value fits it together with the rest"),
    ("look-around", "look-ahead and look-behind cannot be enforced"),
    ("backreference", "references back to a group cannot be enforced"),
    ("regex parse error", "this regular expression cannot be read"),
    ("disjoint", "a name that fits several patterns cannot be enforced"),
    ("sibling keys", "a circular reference beside other keywords cannot be enforced"),
    ("min/maxProperties", "the number of optional properties cannot be enforced"),
    ("oneOf", "its parts may not exclude each other; one of them is enforced, not only one"),
)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something in a schema that answers are not held to.

    Attributes:
        path: The field it stands in.
        reason: Why.
        of: The function whose parameters the schema describes, if it describes some.
    """

    path: str
    reason: str
    of: str = ""


@dataclass(frozen=True, slots=True)
class Enforced:
    """What of a schema answers are held to, and what is left out."""

    schema: dict[str, Any]
    left_out: tuple[LeftOut, ...] = ()


def enforceable(schema: Any, path: str, *, is_strict: bool) -> Enforced:
    """What of a schema answers can be held to.

    Args:
        schema: From a request.
        path: The field it stands in.
        is_strict: Nothing may be left out.

    Raises:
        RequestError: It is no schema, or it is strict and cannot be enforced; the error names the
            first part that cannot.
    """
    if not isinstance(schema, dict | bool):
        raise field_error(path, f"expected a JSON schema (an object), found {describe(schema)}")
    form = normal_form(schema, is_strict=is_strict)
    if not (is_strict and form.left_out):
        _make_compilable(form)
    left_out = tuple(LeftOut(_path(schema, path, at), reason) for at, reason in form.left_out)
    if is_strict and left_out:
        reason = f"{left_out[0].reason} (nothing of this schema may be left out)"
        raise field_error(left_out[0].path, reason)
    return Enforced(form.whole, left_out)


def warn_of(what: str, left_out: Sequence[LeftOut]) -> None:
    """Logs what is left out, once for the same parts."""
    parts = [
        f"{_shown(part.path)}{f' of {part.of}' if part.of else ''} ({_shown(part.reason)})"
        for part in left_out[:_MAX_SHOWN]
    ]
    if len(left_out) > _MAX_SHOWN:
        parts.append(f"and {len(left_out) - _MAX_SHOWN} more")
    if parts:
        _warn_once(what, "; ".join(parts))


@lru_cache(maxsize=256)
def _warn_once(what: str, parts: str) -> None:
    logger.warning(
        "%s are not held to a part of their schema, which is not strict: %s", what, parts
    )


def _shown(text: str) -> str:
    """A caller's text in one line."""
    line = text.encode("unicode_escape").decode()
    return line if len(line) <= _MAX_SHOWN_CHARS else line[:_MAX_SHOWN_CHARS] + "..."


def _path(schema: Any, path: str, at: Place) -> str:
    """A place as a field's path, as far as the caller's schema has it."""
    parts: list[str | int] = [path]
    for name in at:
        if isinstance(schema, list):
            name = int(name) if str(name).isdigit() else len(schema)
        try:
            schema = schema[name]  # pyright: ignore
        except (LookupError, TypeError):
            break
        parts.append(name)
    return field_path(tuple(parts))


def _make_compilable(form: NormalForm) -> None:
    for name in endless(form.definitions):
        form.definitions[name] = {}
        form.left_out.append((form.places[name], "it asks for itself without an end"))
    if schema_error(form.whole) is not None:
        _Mender(form).mend()


class _Mender:
    """Leaves out of one schema what it is refused for."""

    def __init__(self, form: NormalForm):
        self._form = form
        num_chars = len(json.dumps(form.whole))
        self._num_chars_left = _MAX_LENGTHS * num_chars + _FREE_CHARS
        self._is_too_large = num_chars > _MAX_MENDED_CHARS

    def mend(self) -> None:
        """Makes the form one that compiles."""
        if not self._is_too_large:
            self._mend_parts()
        if schema_error(self._form.whole) is not None:
            self._form.left_out.append(((), "the schema as a whole cannot be enforced"))
            self._form.schema, self._form.definitions = {}, {}

    def _mend_parts(self) -> None:
        form = self._form
        for name, part in list(form.definitions.items()):
            form.definitions[name] = {}  # (one that refers to itself is looked at alone)
            form.definitions[name] = self._mended(part, form.places[name])
        form.schema = self._mended(form.schema, ())

    def _leave_out(self, at: Place, error: str) -> None:
        reason = next((reason for text, reason in _REASONS if text in error), _CANNOT)
        self._form.left_out.append((at, reason))

    def _error(self, schema: Any) -> str | None:
        """Why a part is refused, with the definitions as they are now."""
        if isinstance(schema, bool):
            return None
        definitions = self._form.definitions
        whole = {**schema, "$defs": definitions} if definitions else schema
        self._num_chars_left -= len(json.dumps(whole))
        if self._num_chars_left < 0:
            return _TOO_MUCH
        return schema_error(whole)

    def _mended(self, schema: Any, at: Place) -> Any:
        error = self._error(schema)
        if error is None:
            return schema
        if error == _TOO_MUCH:
            self._leave_out(at, error)
            return {}
        for *place, part in list(_parts(schema)):
            mended = self._mended(part, (*at, *place))
            schema = _replaced(schema, place, mended)
        error = self._error(schema)
        return schema if error is None else self._without(schema, at, error)

    def _without(self, schema: dict[str, Any], at: Place, error: str) -> dict[str, Any]:
        """The schema without the one keyword that it is refused for, or without several."""
        if "oneOf" in error and "oneOf" in schema and "anyOf" not in schema:
            any_of = {("anyOf" if key == "oneOf" else key): schema[key] for key in schema}
            if self._error(any_of) is None:
                self._leave_out((*at, "oneOf"), error)
                return any_of
        keys = [key for key in _KEYWORDS if key in schema]
        for key in keys:
            rest = {k: v for k, v in schema.items() if k != key}
            if self._error(rest) is None:
                self._leave_out((*at, key), error)
                return rest
        for key in keys:
            schema = {k: v for k, v in schema.items() if k != key}
            self._leave_out((*at, key), error)
            if self._error(schema) is None:
                return schema
        return {}


def _parts(schema: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """The schemas in a schema, each after the keys that lead to it."""
    for key in ("properties", "patternProperties"):
        for name, part in schema.get(key, {}).items():
            yield key, name, part
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for number, part in enumerate(schema.get(key, ())):
            yield key, number, part
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield key, schema[key]


def _replaced(parts: Any, place: list[Any], part: Any) -> Any:
    """A copy with another part at a place."""
    if not place:
        return part
    name, *rest = place
    if isinstance(parts, dict):
        return {**parts, name: _replaced(parts[name], rest, part)}
    return [*parts[:name], _replaced(parts[name], rest, part), *parts[name + 1 :]]

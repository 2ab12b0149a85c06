"""What becomes of each field of a body, decided in one pass before anything else reads it.

A field is honoured (a model or a checker reads it), ignored since it cannot change the answer, or
refused unless its value is neutral. `server.protocol.field_classes` says which. A field that nobody
classed is unknown; null counts as absent, at any depth.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from rtpjax.errors import RequestError
from server.protocol.described import describe, shortened

logger = logging.getLogger(__name__)

_MAX_SAID = 256  # names that the log repeats; callers choose them


@dataclass(frozen=True, slots=True)
class Ignored:
    """Accepted and not read: it cannot change the answer.

    Attributes:
        why: A sentence.
        values: The ones there are, others are refused; empty if it does not matter.
        is_logged: A caller may expect something of it, so the log says once that nothing happens.
    """

    why: str
    values: tuple[Any, ...] = ()
    is_logged: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """It would change the answer in a way that there is not here.

    Attributes:
        reason: A sentence that says what to do instead.
        neutral: Values that ask for nothing, and are accepted.
        neutral_item: A list that has this in it asks for nothing, too.
        details: What clients that act on the error by themselves look for.
    """

    reason: str
    neutral: tuple[Any, ...] = ()
    neutral_item: str | None = None
    details: Mapping[str, Any] | None = None


FieldClass = Ignored | Refused


@dataclass(frozen=True, slots=True)
class Shape:
    """The fields of one kind of object.

    Attributes:
        honoured: The ones that are read, each with what is inside: the shape of an object or of the
            objects in a list, or None where the reader looks for itself.
        others: The classes of the others.
        is_open: Further fields are left to the reader.
    """

    honoured: Mapping[str, Shape | Kinds | None]
    others: Mapping[str, FieldClass] = field(default_factory=dict)
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Kinds:
    """Objects whose fields depend on their `type`.

    Attributes:
        shapes: By type. Objects of other types are left to the reader ...
        default: The type of an object that does not name it.
        left_out: ... or, with a sentence for the log here, become LEFT_OUT.
    """

    shapes: Mapping[str, Shape]
    default: str | None = None
    left_out: str | None = None


class _LeftOut:
    """Stands in a list for an object that is as good as absent, so that the indices stay right."""

    def __repr__(self) -> str:
        return "LEFT_OUT"


LEFT_OUT = _LeftOut()

# The way to a value: the place of what it is in, and its key or index there. Only errors need the
# path as a text, so it is not written before there is one.
Place = tuple[Any, str | int]


class FieldPolicy:
    """What is done with unknown fields, and what the log has said of fields already.

    Args:
        ignores_unknown: They are left out and logged, else they are refused.
    """

    def __init__(self, *, ignores_unknown: bool = False):
        self._ignores_unknown = ignores_unknown
        self._said: set[str] = set()

    def skip(self, place: Place) -> None:
        """Passes an unknown field over.

        Raises:
            RequestError: That is not allowed.
        """
        path = _path(place)
        if not self._ignores_unknown:
            raise RequestError(f"{path}: unknown field", param=path)
        self.say(_pattern(place), "it is unknown (UNKNOWN_FIELDS=ignore)")

    def say(self, name: str, why: str) -> None:
        """Logs once per name that something in a request is ignored."""
        name = shortened(name)
        if name in self._said or len(self._said) >= _MAX_SAID:
            return
        self._said.add(name)
        logger.warning("%r in a request is ignored: %s (this is logged once)", name, why)


REFUSE = FieldPolicy()


def cleaned(
    value: Any, inside: Shape | Kinds | None, policy: FieldPolicy, place: Place | None = None
) -> Any:
    """An object, or the objects of a list, with honoured fields only. Linear in the value's size.

    Raises:
        RequestError: A field is refused, or unknown.
    """
    if inside is None:
        return value
    if isinstance(value, dict):
        return _object(value, inside, policy, place)
    if isinstance(value, list):
        return [
            _object(item, inside, policy, (place, index)) if isinstance(item, dict) else item
            for index, item in enumerate(value)
        ]
    return value


def _object(
    given: dict[str, Any], inside: Shape | Kinds, policy: FieldPolicy, place: Place | None
) -> Any:
    shape = inside
    if isinstance(inside, Kinds):
        kind = given.get("type")
        shape = inside.shapes.get(cast(str, kind or inside.default)) if _is_name(kind) else None
        if shape is None and inside.left_out is not None and isinstance(kind, str):
            policy.say(f"{_pattern(place)} of type {kind}", inside.left_out)
            return LEFT_OUT
    if shape is None:
        return given
    assert isinstance(shape, Shape)
    kept: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in shape.honoured:
            kept[name] = cleaned(value, shape.honoured[name], policy, (place, name))
        elif name in shape.others:
            _pass_over(shape.others[name], value, policy, (place, name))
        elif shape.is_open:
            kept[name] = value
        else:
            policy.skip((place, name))
    return kept


def _is_name(kind: Any) -> bool:
    return kind is None or isinstance(kind, str)


def _pass_over(found: FieldClass, value: Any, policy: FieldPolicy, place: Place) -> None:
    if isinstance(found, Ignored):
        if found.values and not any(_same(value, each) for each in found.values):
            known = ", ".join(repr(each) for each in found.values)
            path = _path(place)
            reason = f"expected one of {known}, found {describe(value)}"
            raise RequestError(f"{path}: {reason}", param=path)
        if found.is_logged:
            policy.say(_pattern(place), found.why)
        return
    is_neutral = any(_same(value, each) for each in found.neutral)
    if found.neutral_item is not None and isinstance(value, list):
        is_neutral |= found.neutral_item in value
    if not is_neutral:
        path = _path(place)
        code = "unsupported_parameter"
        raise RequestError(f"{path}: {found.reason}", param=path, code=code, details=found.details)


def _same(value: Any, neutral: Any) -> bool:
    """Whether two JSON values are the same; 1 and 1.0 are."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


def _path(place: Place | None) -> str:
    """`messages[0].content[1].type`."""
    text = ""
    for key in _keys(place):
        text += f"[{key}]" if isinstance(key, int) else f".{shortened(key)}"
    return text.removeprefix(".")


def _pattern(place: Place | None) -> str:
    """The same without the indices."""
    names = ["[]" if isinstance(key, int) else f".{shortened(key)}" for key in _keys(place)]
    return "".join(names).removeprefix(".")


def _keys(place: Place | None) -> list[str | int]:
    keys: list[str | int] = []
    while place is not None:
        place, key = place
        keys.append(key)
    return keys[::-1]

"""The functions that a request offers, with what calls of them are held to.

A schema is a promise where it is strict, and a description where it is not: what cannot be enforced
is left out of that one function's constraint, and the log says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from server.function_calls import CallOptions, Function
from server.json_schema.enforce import LeftOut, enforceable, warn_of
from server.json_schema.types import kind_of
from server.protocol.body import describe, field_error

_ANY_OBJECT = {"type": "object"}
_TOO_MUCH = "all schemas together are too much to enforce; of this one, calls have any arguments"


@dataclass(frozen=True, slots=True)
class Offered:
    """A function that may be called.

    Attributes:
        name: Its name.
        path: The field that its parameters stand in.
        schema: What its arguments are held to, in normal form.
        is_strict: Nothing may be left out.
        left_out: What has been.
    """

    name: str
    path: str
    schema: dict[str, Any]
    is_strict: bool = False
    left_out: tuple[LeftOut, ...] = field(default=())

    def without(self, key: str, reason: str) -> Offered:
        """The function when a parameter's schema, or that of all ("" for the key), is left out.

        Raises:
            RequestError: It is strict.
        """
        path = f"{self.path}.properties.{key}" if key else self.path
        if self.is_strict:
            raise field_error(path, reason)
        return replace(self, left_out=(*self.left_out, LeftOut(path, reason, self.name)))

    @property
    def loose(self) -> Offered:
        """The function with any arguments.

        Raises:
            RequestError: It is strict.
        """
        return replace(self.without("", _TOO_MUCH), schema=_ANY_OBJECT)


def offered(calls: CallOptions) -> list[Offered]:
    """The functions that may be called now.

    Raises:
        RequestError: One is strict, and its schema cannot be enforced.
    """
    place = "tools[{}].function" if calls.dialect == "tools" else "functions[{}]"
    return [
        _offered(function, f"{place.format(i)}.parameters")
        for i, function in enumerate(calls.offered)
        if calls.named in (None, function.name)
    ]


def _offered(function: Function, path: str) -> Offered:
    given, is_strict = function.parameters, function.is_strict
    kinds = given.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    found = Offered(function.name, path, {}, is_strict)
    if kinds != [None] and "object" not in map(kind_of, kinds):
        reason = f"arguments are an object, found {describe(given['type'])}"
        if is_strict:
            raise field_error(f"{path}.type", reason)
        found = replace(found, left_out=(LeftOut(f"{path}.type", reason, function.name),))
    rest = {key: value for key, value in given.items() if key != "type"}
    enforced = enforceable({"type": "object"} | rest, path, is_strict=is_strict)
    left_out = tuple(replace(part, of=function.name) for part in enforced.left_out)
    return replace(found, schema=enforced.schema, left_out=found.left_out + left_out)


def warn_of_calls(functions: Sequence[Offered]) -> None:
    """Logs what is left out of the schemas of some functions."""
    warn_of("calls", [part for function in functions for part in function.left_out])

"""Calls as JSON objects, `{"name": .., "arguments": {..}}`, alone or in a list, between marks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.parsing import json_text
from server.parsing.calls import Calls, text_with_calls
from server.parsing.source import NotACall, Source, Steps, Wait, joined

_NAME = frozenset({"name", "tool_name"})
_ARGUMENTS = frozenset({"arguments", "parameters"})
_NESTED = frozenset({"function"})
_ID = frozenset({"id"})
_SEPARATORS = ",;"


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """Sections of JSON calls.

    Attributes:
        opens: Marks that begin a section.
        closes: Marks that end it. A list ends its section as well, and so does a missing mark.
        prefixes: Marks that may follow the opening one.
        is_bare: Whether an answer that begins with such JSON is a section without a mark. As JSON
            is a usual answer too, only functions that were offered are called this way.
        only_offered: Whether that holds behind a mark as well.
    """

    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    is_bare: bool = False
    only_offered: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return self.opens + self.closes + self.prefixes

    def read(self, source: Source, calls: Calls) -> Steps[None]:
        """The grammar of a whole answer."""
        bare = ("{", "[") if self.is_bare else ()
        yield from text_with_calls(source, calls, self.opens, self.read_section, bare=bare)

    def read_section(self, source: Source, calls: Calls) -> Steps[None]:
        is_marked = bool((yield from source.accept(*self.opens)))
        known = None if is_marked and not self.only_offered else calls.schemas
        yield from source.space()
        yield from source.accept(*self.prefixes)
        num_before = calls.num_started
        while True:
            yield from source.space()
            if self.closes and (yield from source.accept(*self.closes)):
                return
            character = yield from source.peek()
            if character == "{":
                yield from _Envelope().read(source, calls, self.closes, known)
                source.keep()  # what is no call after this one is text
            elif character and character in "[" + _SEPARATORS:
                source.take(1)
            elif character and character in "]}":
                # The list's end, or a bracket too many.
                source.take(1)
                if calls.num_started > num_before:
                    source.keep()
                if character == "]" and not self.closes:
                    return
            elif not character and calls.num_started > num_before:
                return
            else:
                raise NotACall


@dataclass(slots=True)
class _Envelope:
    """The object around one call's arguments; its keys come in any order."""

    name: str | None = None
    call_id: str | None = None
    arguments: str | None = None
    is_started: bool = False
    is_nested: bool = False

    def read(
        self, source: Source, calls: Calls, closes: tuple[str, ...], known: Mapping[str, Any] | None
    ) -> Steps[None]:
        yield from self._object(source, calls, closes, known)
        if self.is_started:
            return
        self._check(known)
        assert self.name is not None
        yield calls.start(source, self.name, self.call_id)
        yield calls.fragment(self.arguments or "{}")

    def _object(
        self, source: Source, calls: Calls, closes: tuple[str, ...], known: Mapping[str, Any] | None
    ) -> Steps[None]:
        source.take(1)
        while True:
            yield from source.space()
            character = yield from source.peek()
            if character == "}":
                source.take(1)
                return
            if character == ",":
                source.take(1)
            elif character == '"':
                yield from self._member(source, calls, closes, known)
            elif (self.is_started or self.name) and (
                not character or (yield from source.starts_with(closes))
            ):
                return  # the brace is missing
            else:
                raise NotACall

    def _member(
        self, source: Source, calls: Calls, closes: tuple[str, ...], known: Mapping[str, Any] | None
    ) -> Steps[None]:
        key = yield from json_text.string(source)
        yield from source.space()
        if not (yield from source.accept(":")):
            raise NotACall
        yield from source.space()
        character = yield from source.peek()
        if self.is_started:
            yield from _skip(source, closes)
        elif key in _NAME and character == '"':
            self.name = yield from json_text.string(source)
            self._check(known)
        elif key in _NESTED and character == "{" and not self.is_nested:
            self.is_nested = True
            yield from self._object(source, calls, closes, known)
        elif key in _ARGUMENTS and self.name and character and character in "{[":
            self.is_started = True
            yield calls.start(source, self.name, self.call_id)
            yield from calls.arguments(json_text.value(source, closes))
        elif key in _ARGUMENTS:
            self.arguments = yield from _held(source, closes)
        elif key in _ID and character == '"':
            self.call_id = yield from json_text.string(source)
        else:
            yield from _skip(source, closes)

    def _check(self, known: Mapping[str, Any] | None) -> None:
        if not self.name or (known is not None and self.name not in known):
            raise NotACall


def _skip(source: Source, closes: tuple[str, ...]) -> Wait[None]:
    text, _ = yield from joined(json_text.value(source, closes))
    if not text:
        raise NotACall


def _held(source: Source, closes: tuple[str, ...]) -> Wait[str]:
    """Arguments that cannot be passed on yet; inside a JSON string they are what it spells."""
    text, _ = yield from joined(json_text.value(source, closes))
    if not text:
        raise NotACall
    if text == "null":
        return "{}"
    if not text.startswith('"'):
        return text
    try:
        return json.loads(text, strict=False) or "{}"
    except ValueError as error:
        raise NotACall from error

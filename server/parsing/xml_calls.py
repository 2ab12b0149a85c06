"""Calls with one tag per parameter, whose values are plain text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from server.parsing.calls import Calls, text_with_calls
from server.parsing.source import NotACall, Pieces, Source, Steps, Wait
from server.parsing.typed_values import types_of, value_pieces

_NAME = re.compile(r"[^\s<>\"'={}]+")


@dataclass(frozen=True, slots=True)
class XmlCalls:
    """`section ([function]NAME[name end] ([key]K[key end][value]V[value end])* [function end])*`.

    Attributes:
        section, section_end: Marks around the calls.
        function: The mark before a function's name; without one the name follows `section`.
        name_end: Marks after the name. Without `function` they begin what follows.
        function_end: The mark after the last parameter, if there is one besides `section_end`.
        trims_lines: Whether the line breaks around a value are no part of it.
        typed_key: What a key looks like that says whether its value is a string, in the groups
            `key` and `is_string` ("true"); the schema says where a key does not.
    """

    section: str
    section_end: str
    name_end: tuple[str, ...]
    key: str
    key_end: str
    value_end: str
    function: str = ""
    function_end: str = ""
    value: str = ""
    trims_lines: bool = False
    typed_key: re.Pattern[str] | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        marks = (self.section, self.section_end, self.key, self.key_end, self.value, self.value_end)
        return tuple(mark for mark in marks if len(mark) > 1)

    def read(self, source: Source, calls: Calls) -> Steps[None]:
        """The grammar of a whole answer."""
        opens = tuple(filter(None, (self.section, self.function)))
        yield from text_with_calls(source, calls, opens, self._section)

    def _section(self, source: Source, calls: Calls) -> Steps[None]:
        has_section = bool((yield from source.accept(self.section)))
        while True:
            yield from source.space()
            if self.function and (yield from source.accept(self.section_end)):
                return
            if self.function and not (yield from source.accept(self.function)):
                if (yield from source.peek()):
                    raise NotACall
                return
            yield from self._call(source, calls)
            source.keep()
            if not self.function or not has_section:
                return

    def _call(self, source: Source, calls: Calls) -> Steps[None]:
        name = yield from self._name(source)
        if not self.function and name not in calls.schemas:
            raise NotACall  # a mark and a word can be plain text
        yield calls.start(source, name)
        num_parameters = 0
        while True:
            source.keep()
            yield from source.space()
            if (yield from source.accept(self.key)):
                source.commit()
                yield calls.fragment(", " if num_parameters else "{")
                yield from calls.arguments(self._parameter(source, calls, name))
                num_parameters += 1
                continue
            end = self.function_end or self.section_end
            if (yield from source.accept(end)):
                source.keep()
            elif (yield from source.peek()) and not (
                yield from source.starts_with((self.section_end,))
            ):
                source.rewind()  # text that belongs to no parameter
            break
        yield calls.fragment("}" if num_parameters else "{}")

    def _name(self, source: Source) -> Wait[str]:
        text, mark = yield from source.collect((*self.name_end, self.section))
        if mark not in self.name_end:
            raise NotACall
        if self.function:
            source.take(len(mark))
        name = text.strip().strip("\"'")
        if not _NAME.fullmatch(name):
            raise NotACall
        return name

    def _parameter(self, source: Source, calls: Calls, name: str) -> Pieces[None]:
        key, mark = yield from source.collect((self.key_end, self.value_end, self.section_end))
        if mark == self.key_end:
            source.take(len(mark))
        typed = self.typed_key.fullmatch(key.strip()) if self.typed_key else None
        key = typed["key"] if typed else key.strip().strip("\"'")
        yield json.dumps(key, ensure_ascii=False) + ": "
        if self.value:
            yield from source.space()
            yield from source.accept(self.value)
        schema = calls.properties(name).get(key)
        types = types_of(schema, calls.schemas.get(name, {}))
        if typed:
            types = frozenset({"string"}) if typed["is_string"] == "true" else frozenset()
        text = self._value_text(source)
        mark = yield from value_pieces(text, types, trims_lines=self.trims_lines)
        if mark == self.value_end:
            source.take(len(mark))

    def _value_text(self, source: Source) -> Pieces[str]:
        """The text up to the mark that ends the value; one that is missing ends with the next."""
        after_function = (self.section_end, self.function) if self.function else ()
        followers = {self.function_end: after_function, self.section_end: (self.section,)}

        def is_real(mark: str) -> Wait[bool]:
            if mark not in followers:
                return True
            return (yield from source.is_followed_by(len(mark), followers[mark]))

        marks = (self.value_end, self.key, self.function_end, self.section_end)
        return source.before(tuple(filter(None, marks)), is_real)

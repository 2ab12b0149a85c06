"""FunctionGemma's calls, `call:f{city:<escape>Paris<escape>,days:3}`: JSON with other quotes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from server.parsing import json_text
from server.parsing.calls import Calls, text_with_calls
from server.parsing.source import NotACall, Pieces, Source, Steps
from server.parsing.typed_values import as_json, spelled

_MAX_DEPTH = 32
_NAME = re.compile(r"[\w.:/-]+")


@dataclass(frozen=True, slots=True)
class BracedCalls:
    """Sections with one call each.

    Attributes:
        opens, closes: Marks around a call.
        prefix: What stands before the name.
        quote: The mark before and after a string.
    """

    opens: str
    closes: str
    prefix: str
    quote: str

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.opens, self.closes, self.quote)

    def read(self, source: Source, calls: Calls) -> Steps[None]:
        """The grammar of a whole answer."""
        yield from text_with_calls(source, calls, (self.opens,), self._section)

    def _section(self, source: Source, calls: Calls) -> Steps[None]:
        source.take(len(self.opens))
        yield from source.space()
        if not (yield from source.accept(self.prefix)):
            raise NotACall
        text, mark = yield from source.collect(("{", "\n", self.opens, self.closes))
        if mark != "{" or not _NAME.fullmatch(text.strip()):
            raise NotACall
        yield calls.start(source, text.strip())
        yield from calls.arguments(self._value(source))
        source.keep()
        yield from source.space()
        if not (yield from source.accept(self.closes)):
            source.rewind()

    def _value(self, source: Source, depth: int = 0) -> Pieces[None]:
        character = yield from source.peek()
        if character == "{" and depth < _MAX_DEPTH:
            yield from self._members(source, "}", depth + 1)
        elif character == "[" and depth < _MAX_DEPTH:
            yield from self._members(source, "]", depth + 1)
        elif character == '"':
            yield from json_text.value(source)
        elif (yield from source.accept(self.quote)):
            yield '"'
            yield from self._string(source)
            yield '"'
        else:
            text, _ = yield from source.collect((",", "}", "]", self.closes))
            yield as_json(text.strip(), frozenset())

    def _string(self, source: Source) -> Pieces[None]:
        pieces = source.before((self.quote,))
        while True:
            try:
                piece = next(pieces)
            except StopIteration:
                break
            yield spelled(piece) if piece else piece
        yield from source.accept(self.quote)

    def _members(self, source: Source, end: str, depth: int) -> Pieces[None]:
        yield source.take(1)
        num_members = 0
        while True:
            yield from source.space()
            if not (yield from source.peek()) or (yield from source.starts_with((self.closes,))):
                break
            if (yield from source.accept(end)) or (yield from source.starts_with(("}", "]"))):
                break
            if num_members:
                yield from source.accept(",")
                yield from source.space()
                yield ", "
            if end == "}":
                yield from self._key(source, end)
            yield from self._value(source, depth)
            num_members += 1
        yield end

    def _key(self, source: Source, end: str) -> Pieces[None]:
        if (yield from source.peek()) == '"':
            yield json.dumps((yield from json_text.string(source)), ensure_ascii=False)
            yield from source.space()
        elif (yield from source.accept(self.quote)):
            key, _ = yield from source.collect((self.quote,))
            yield from source.accept(self.quote)
            yield json.dumps(key, ensure_ascii=False)
            yield from source.space()
        else:
            key, _ = yield from source.collect((":", ",", end, self.closes))
            yield json.dumps(key.strip(), ensure_ascii=False)
        yield from source.accept(":")
        yield from source.space()
        yield ": "

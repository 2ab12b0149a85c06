"""JSON as it is written: values are passed through verbatim while they come."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from server.parsing.source import NotACall, Pieces, Source, Wait, joined

# What can be passed on without a look: inside a string, and between strings.
_IN_STRING = re.compile(r'[^"\\]*')
_BETWEEN = re.compile(r'[^"\[\]{}<✿]*')
_SCALAR = re.compile(r"[-+.\w]*")
_OPEN, _CLOSE = "{[", "}]"


def string(source: Source) -> Wait[str]:
    """Reads a JSON string and returns what it spells.

    Raises:
        NotACall: There is none.
    """
    text, _ = yield from joined(_string_text(source))
    try:
        value = json.loads(text, strict=False)
    except ValueError as error:
        raise NotACall from error
    return value


def value(source: Source, ends: Sequence[str] = ()) -> Pieces[None]:
    """Yields the text of one JSON value.

    A broken value is passed through as well: it ends where its brackets close, or outside a string
    before one of `ends`, or where the text ends. Forgotten brackets are put in where it must end.
    """
    first = yield from source.peek()
    if first == '"':
        yield from _string_text(source)
    elif first and first in _OPEN:
        yield from _nested(source, ends)
    else:
        yield from _matching(source, _SCALAR)


def _nested(source: Source, ends: Sequence[str]) -> Pieces[None]:
    open_brackets: list[str] = []
    num_open = Counter[str]()
    while True:
        character = yield from source.peek()
        if not character:
            return
        if character == '"':
            yield from _string_text(source)
        elif character in _OPEN:
            open_brackets.append(character)
            num_open[character] += 1
            yield source.take(1)
        elif character in _CLOSE:
            opened = _OPEN[_CLOSE.index(character)]
            if num_open[opened]:
                forgotten: list[str] = []
                while (last := open_brackets.pop()) != opened:
                    forgotten.append(last)
                num_open -= Counter((opened, *forgotten))
                yield _closing(forgotten)
            yield source.take(1)
            if not open_brackets:
                return
        elif (yield from source.starts_with(ends)):
            yield _closing(reversed(open_brackets))
            return
        else:
            yield source.take(1)
            yield from _matching(source, _BETWEEN)


def _closing(opened: Iterable[str]) -> str:
    """The brackets that a model forgot; the innermost comes first."""
    return "".join(_CLOSE[_OPEN.index(bracket)] for bracket in opened)


def _string_text(source: Source) -> Pieces[None]:
    if (yield from source.peek()) != '"':
        raise NotACall
    yield source.take(1)
    while True:
        yield from _matching(source, _IN_STRING)
        character = yield from source.peek()
        if not character:
            return
        if character == '"':
            yield source.take(1)
            return
        # An escape and what it escapes are one piece: half of it means nothing.
        escape = source.take(1)
        if (yield from source.peek()):
            escape += source.take(1)
        yield escape


def _matching(source: Source, pattern: re.Pattern[str]) -> Pieces[None]:
    """Yields text as long as it consists of what the pattern matches."""
    while True:
        rest = source.rest
        match = pattern.match(rest)
        assert match is not None
        if match.end():
            yield source.take(match.end())
        if match.end() < len(rest) or not (yield from source.wait()):
            return

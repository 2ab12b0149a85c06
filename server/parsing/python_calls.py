"""Calls as a Python list, `[f(a=1), g(b="x")]`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from server.parsing.calls import Calls, text_with_calls
from server.parsing.json_calls import JsonCalls
from server.parsing.source import NotACall, Source, Steps, Wait
from server.parsing.typed_values import as_json, python_literal

_NAME = re.compile(r"[^\W\d][\w.-]*")
_JSON = JsonCalls()
_KEYWORD = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True, slots=True)
class PythonCalls:
    """Where the answer begins with `[`, or between marks. Only offered functions are called.

    The models that write it write JSON instead when a template asks them to; that is read, too.

    Attributes:
        opens, closes: Marks that may stand around the list.
        is_bare: Whether a list without marks counts where the answer begins.
    """

    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    is_bare: bool = True

    @property
    def marks(self) -> tuple[str, ...]:
        return self.opens + self.closes

    def read(self, source: Source, calls: Calls) -> Steps[None]:
        """The grammar of a whole answer."""
        bare = ("[", "{") if self.is_bare else ()
        yield from text_with_calls(source, calls, self.opens, self._section, bare=bare)

    def _section(self, source: Source, calls: Calls) -> Steps[None]:
        yield from source.accept(*self.opens)
        yield from source.space()
        is_list = (yield from source.peek()) == "["
        if not is_list or (yield from source.is_followed_by(1, ("{",))):
            yield from _JSON.read_section(source, calls)
            yield from self._close(source)
            return
        if not (yield from source.accept("[")):
            raise NotACall
        num_before = calls.num_started
        while True:
            yield from source.space()
            yield from source.accept(",")
            yield from source.space()
            if (yield from source.accept("]")):
                break
            if not (yield from source.peek()):
                return
            yield from self._call(source, calls)
            source.keep()
        if calls.num_started == num_before:
            raise NotACall
        yield from self._close(source)

    def _close(self, source: Source) -> Steps[None]:
        source.keep()
        yield from source.space()
        if not (yield from source.accept(*self.closes)):
            source.rewind()

    def _call(self, source: Source, calls: Calls) -> Steps[None]:
        text, mark = yield from source.collect(("(", "\n", ")", "]", ","))
        name = text.strip()
        if mark != "(" or not _NAME.fullmatch(name) or name not in calls.schemas:
            raise NotACall
        source.take(1)
        num_arguments = 0
        while not (yield from self._is_over(source, num_arguments)):
            try:
                key, written = yield from _argument(source)
            except NotACall:
                if not num_arguments:
                    raise
                source.rewind()  # what is no argument after the others is text
                break
            value = python_literal(written) or as_json(written, frozenset())
            if not num_arguments:
                yield calls.start(source, name)
            separator = ", " if num_arguments else "{"
            yield calls.fragment(f"{separator}{json.dumps(key, ensure_ascii=False)}: {value}")
            num_arguments += 1
            yield from source.accept(",")
            source.keep()
        if not num_arguments:
            yield calls.start(source, name)
        yield calls.fragment("}" if num_arguments else "{}")

    def _is_over(self, source: Source, num_arguments: int) -> Wait[bool]:
        yield from source.space()
        if (yield from source.accept(")")):
            return True
        return num_arguments > 0 and not (yield from source.peek())


def _argument(source: Source) -> Wait[tuple[str, str]]:
    """Reads `key=value`; returns the key and the value's text."""
    key, mark = yield from source.collect(("=", ",", ")", "(", "\n"))
    key = key.strip()
    if mark != "=" or not _KEYWORD.fullmatch(key):
        raise NotACall
    source.take(1)
    parts: list[str] = []
    depth = 0
    while character := (yield from source.peek()):
        if character in "\"'":
            parts.append((yield from _quoted(source)))
        elif depth == 0 and character in ",)]}":
            break
        else:
            depth += (character in "([{") - (character in ")]}")
            parts.append(source.take(1))
    return key, "".join(parts).strip()


def _quoted(source: Source) -> Wait[str]:
    quote = source.take(1)
    text = [quote]
    while character := (yield from source.peek()):
        text.append(source.take(1))
        if character == "\\":
            if (yield from source.peek()):
                text.append(source.take(1))
        elif character == quote:
            break
    return "".join(text)

"""Calls as a header with the name, and JSON arguments after it, each between marks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.parsing import json_text
from server.parsing.calls import Calls, text_with_calls
from server.parsing.source import NotACall, Source, Steps, Wait


@dataclass(frozen=True, slots=True)
class HeadedCalls:
    """`[section begin] ([call begin] header [header end] {json} [call end])* [section end]`.

    Attributes:
        call: Marks that begin a call.
        header_end: Marks between header and arguments; a `{` among them begins the arguments.
        header: What the header says, in the groups `name` and perhaps `id`.
        call_end: Marks that end a call; a missing one is no fault.
        section, section_end: Marks around all calls, or none.
        fence: Marks right before and after the arguments, or none.
        result, result_end: Marks around a result that the model makes up. It is left out.
        has_nested_marks: Whether a header may have a mark of `call` in it.
    """

    call: tuple[str, ...]
    header_end: tuple[str, ...]
    header: re.Pattern[str]
    call_end: tuple[str, ...] = ()
    section: tuple[str, ...] = ()
    section_end: tuple[str, ...] = ()
    fence: tuple[str, ...] = ()
    result: tuple[str, ...] = ()
    result_end: tuple[str, ...] = ()
    has_nested_marks: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        marks = self.call + self.header_end + self.call_end + self.section + self.section_end
        return tuple(mark for mark in marks if mark != "{")  # (one character is no mark)

    def read(self, source: Source, calls: Calls) -> Steps[None]:
        """The grammar of a whole answer."""
        yield from text_with_calls(source, calls, self.section + self.call, self.read_section)

    def read_section(self, source: Source, calls: Calls) -> Steps[None]:
        """One section, or one call without a section around it."""
        has_section = bool((yield from source.accept(*self.section)))
        while True:
            yield from source.space()
            if (yield from source.accept(*self.section_end)):
                return
            if not (yield from source.accept(*self.call)):
                if (yield from source.peek()):
                    raise NotACall
                return
            yield from self._call(source, calls)
            yield from self._skip_result(source)
            source.keep()
            if not has_section:
                return

    def _call(self, source: Source, calls: Calls) -> Steps[None]:
        name, call_id = yield from self._read_header(source)
        yield from source.space()
        if (yield from source.accept(*self.fence)):
            yield from source.space()
        character = yield from source.peek()
        if character and character in "{[":
            yield calls.start(source, name, call_id)
            yield from calls.arguments(json_text.value(source, self.call_end))
        elif self.call_end and (yield from source.starts_with(self.call_end)):
            yield calls.start(source, name, call_id)
            yield calls.fragment("{}")
        else:
            raise NotACall
        source.keep()
        yield from source.space()
        if (yield from source.accept(*self.fence)):
            yield from source.space()
        if (yield from source.accept(*self.call_end)):
            source.keep()
        else:
            source.rewind()

    def _skip_result(self, source: Source) -> Wait[None]:
        source.keep()
        yield from source.space()
        if (yield from source.accept(*self.result)):
            yield from source.collect(self.result_end + self.call)
            yield from source.accept(*self.result_end)
        else:
            source.rewind()

    def _read_header(self, source: Source) -> Wait[tuple[str, str | None]]:
        # A call that begins inside the header shows that this one is none.
        others = () if self.has_nested_marks else self.call
        text, mark = yield from source.collect(self.header_end + others + self.call_end)
        if mark not in self.header_end:
            raise NotACall
        if mark != "{":
            source.take(len(mark))
        match = self.header.fullmatch(text.strip())
        if match is None:
            raise NotACall
        return match["name"], match.groupdict().get("id")

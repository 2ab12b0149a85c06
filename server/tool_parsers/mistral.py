"""Mistral: [TOOL_CALLS] [{"name": "f", "arguments": {}}], newer [TOOL_CALLS]f[ARGS]{}."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from server.parsing.calls import Calls, short_id, text_with_calls
from server.parsing.headed_calls import HeadedCalls
from server.parsing.json_calls import JsonCalls
from server.parsing.source import Source, Steps
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

_MARK = "[TOOL_CALLS]"
_LIST = JsonCalls(opens=(_MARK,))
_HEADED = HeadedCalls(
    call=(_MARK,),
    header_end=("[ARGS]", "{"),
    header=re.compile(r"(?P<name>[\w.:/-]+)(\[CALL_ID\](?P<id>\w+))?"),
)


@dataclass(frozen=True, slots=True)
class _Either:
    """The character after the mark tells which of the two it is."""

    marks: tuple[str, ...] = (_MARK, "[ARGS]", "[CALL_ID]")

    def read(self, source: Source, calls: Calls) -> Steps[None]:
        yield from text_with_calls(source, calls, (_MARK,), self._section)

    def _section(self, source: Source, calls: Calls) -> Steps[None]:
        is_list = yield from source.is_followed_by(len(_MARK), ("[", "{"))
        grammar = _LIST if is_list else _HEADED
        yield from grammar.read_section(source, calls)


_WRITTEN_LIST = Written(
    begin=f"{_MARK} [",
    call='{"name": "{name}", "arguments": ',
    end="}",
    section_end="]",
    separator=", ",
    trigger=_MARK,
)
_WRITTEN_HEADED = Written(
    call=f"{_MARK}{{name}}[ARGS]", separator="", trigger=_MARK, in_template="[ARGS]"
)

FORMAT = ToolFormat(
    _Either(),
    written=(
        _WRITTEN_HEADED,
        replace(_WRITTEN_LIST, begin=f"{_MARK}[", in_template=f"{_MARK}["),
        _WRITTEN_LIST,
    ),
    in_template=(_MARK,),
    make_id=short_id,
)

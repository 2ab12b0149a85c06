"""DeepSeek V3 and R1: a type, a name and fenced JSON between marks of their own."""

from __future__ import annotations

import re

from server.parsing.headed_calls import HeadedCalls
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    HeadedCalls(
        section=("<｜tool▁calls▁begin｜>",),
        call=("<｜tool▁call▁begin｜>",),
        header=re.compile(r"\w*\s*<｜tool▁sep｜>\s*(?P<name>[\w.:/-]+)"),
        header_end=("```json", "```", "{"),
        fence=("```",),
        call_end=("<｜tool▁call▁end｜>",),
        section_end=("<｜tool▁calls▁end｜>",),
    ),
    written=(
        Written(
            begin="<｜tool▁calls▁begin｜>",
            call="<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n",
            end="\n```<｜tool▁call▁end｜>",
            section_end="<｜tool▁calls▁end｜>",
            trigger="<｜tool▁calls▁begin｜>",
            marks=("<｜tool▁sep｜>",),
        ),
    ),
    in_template=("<｜tool▁calls▁begin｜>", "```json"),
)

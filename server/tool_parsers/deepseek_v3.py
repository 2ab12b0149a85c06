"""DeepSeek V3 and R1: a type, a name and fenced JSON between marks of their own."""

from __future__ import annotations

import re

from server.parsing.headed_calls import HeadedCalls
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
    in_template=("<｜tool▁calls▁begin｜>", "```json"),
)

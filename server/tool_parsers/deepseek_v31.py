"""DeepSeek V3.1: <｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{..}<｜tool▁call▁end｜> in V3's section."""

from __future__ import annotations

import re

from server.parsing.headed_calls import HeadedCalls
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    HeadedCalls(
        section=("<｜tool▁calls▁begin｜>",),
        call=("<｜tool▁call▁begin｜>",),
        header=re.compile(r"(?P<name>[\w.:/-]+)"),
        header_end=("<｜tool▁sep｜>",),
        call_end=("<｜tool▁call▁end｜>",),
        section_end=("<｜tool▁calls▁end｜>",),
    ),
    written=(
        Written(
            begin="<｜tool▁calls▁begin｜>",
            call="<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>",
            end="<｜tool▁call▁end｜>",
            section_end="<｜tool▁calls▁end｜>",
            separator="",
            trigger="<｜tool▁calls▁begin｜>",
        ),
    ),
    in_template=("<｜tool▁calls▁begin｜>",),
)

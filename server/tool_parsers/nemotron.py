"""Nemotron Nano v2: <TOOLCALL>[{"name": "f", "arguments": {"a": 1}}]</TOOLCALL>"""

from __future__ import annotations

from server.parsing.json_calls import JsonCalls
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    JsonCalls(opens=("<TOOLCALL>",), closes=("</TOOLCALL>",)),
    written=(
        Written(
            begin="<TOOLCALL>[",
            call='{"name": "{name}", "arguments": ',
            end="}",
            section_end="]</TOOLCALL>",
            separator=", ",
            trigger="<TOOLCALL>",
        ),
    ),
    in_template=("<TOOLCALL>",),
)

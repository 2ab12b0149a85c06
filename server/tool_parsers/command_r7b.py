"""Cohere's Command R7B and A: <|START_ACTION|>[{"tool_call_id": "0", "tool_name": "f", ..}]."""

from __future__ import annotations

from server.parsing.json_calls import JsonCalls
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    JsonCalls(opens=("<|START_ACTION|>",), closes=("<|END_ACTION|>",)),
    written=(
        Written(
            begin="<|START_ACTION|>[\n    ",
            call='{"tool_call_id": "{index}", "tool_name": "{name}", "parameters": ',
            end="}",
            section_end="\n]<|END_ACTION|>",
            separator=",\n    ",
            trigger="<|START_ACTION|>",
        ),
    ),
    in_template=("<|START_ACTION|>",),
)

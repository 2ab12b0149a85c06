"""Granite 3: <|tool_call|>[{"name": "f", "arguments": {"a": 1}}]"""

from __future__ import annotations

from server.parsing.json_calls import JsonCalls
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    JsonCalls(opens=("<|tool_call|>", "<tool_call>"), closes=("</tool_call>",)),
    written=(
        Written(
            begin="<|tool_call|>[",
            call='{"name": "{name}", "arguments": ',
            end="}",
            section_end="]",
            separator=", ",
            trigger="<|tool_call|>",
        ),
    ),
    in_template=("<|tool_call|>", "<|start_of_role|>"),
)

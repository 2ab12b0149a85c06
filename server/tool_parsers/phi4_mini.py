"""Phi-4-mini: functools[{"name": "f", "arguments": {"a": 1}}]"""

from __future__ import annotations

from server.parsing.json_calls import JsonCalls
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    JsonCalls(opens=("functools", "<|tool_call|>"), closes=("<|/tool_call|>",)),
    written=(
        Written(
            begin="<|tool_call|>[",
            call='{"name": "{name}", "arguments": ',
            end="}",
            section_end="]<|/tool_call|>",
            separator=", ",
            trigger="<|tool_call|>",
            in_template="<|tool_call|>",
        ),
        Written(
            begin="functools[",
            call='{"name": "{name}", "arguments": ',
            end="}",
            section_end="]",
            separator=", ",
            trigger="functools[",
        ),
    ),
    in_template=("<|tool|>", "<|/tool|>"),
)

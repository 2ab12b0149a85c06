"""Hermes, Qwen 2.5, Qwen 3 and many others; also what our own system text asks for.

<tool_call>
{"name": "f", "arguments": {"a": 1}}
</tool_call>
"""

from __future__ import annotations

from server.parsing.json_calls import JsonCalls
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    JsonCalls(opens=("<tool_call>",), closes=("</tool_call>",)),
    written=(
        Written(
            call='<tool_call>\n{"name": "{name}", "arguments": ',
            end="}\n</tool_call>",
            trigger="<tool_call>",
        ),
    ),
    in_template=("<tool_call>",),
)

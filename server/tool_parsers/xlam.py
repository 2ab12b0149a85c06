"""xLAM: an answer that is a JSON list, [{"name": "f", "arguments": {"a": 1}}], perhaps fenced."""

from __future__ import annotations

from server.parsing.json_calls import JsonCalls
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    JsonCalls(opens=("[TOOL_CALLS]", "```json"), closes=("```",), is_bare=True, only_offered=True),
    written=(
        Written(
            begin="[",
            call='{"name": "{name}", "arguments": ',
            end="}",
            section_end="]",
            separator=", ",
        ),
    ),
    in_template=("make calls in a single JSON array",),
)

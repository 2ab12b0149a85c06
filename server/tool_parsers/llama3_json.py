"""Llama 3.1 and 3.2: {"name": "f", "parameters": {"a": 1}}, more of them after a semicolon."""

from __future__ import annotations

from server.parsing.json_calls import JsonCalls
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    JsonCalls(opens=("<|python_tag|>",), is_bare=True),
    written=(Written(call='{"name": "{name}", "parameters": ', end="}", separator="; "),),
    in_template=("<|start_header_id|>", '"parameters"', "tools"),
)

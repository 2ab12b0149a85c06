"""Phi-4-mini: functools[{"name": "f", "arguments": {"a": 1}}]"""

from __future__ import annotations

from server.parsing.json_calls import JsonCalls
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    JsonCalls(opens=("functools", "<|tool_call|>"), closes=("<|/tool_call|>",)),
    in_template=("<|tool|>", "<|/tool|>"),
)

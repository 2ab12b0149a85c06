"""InternLM 2: <|action_start|><|plugin|>{"name": "f", "parameters": {"a": 1}}<|action_end|>"""

from __future__ import annotations

from server.parsing.json_calls import JsonCalls
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    JsonCalls(
        opens=("<|action_start|>",),
        closes=("<|action_end|>", "<|action_end |>"),
        prefixes=("<|plugin|>", "<|interpreter|>"),
    ),
    written=(
        Written(
            call='<|action_start|><|plugin|>\n{"name": "{name}", "parameters": ',
            end="}<|action_end|>",
            trigger="<|plugin|>",
        ),
    ),
    in_template=("<|action_start|>",),
    model_types=("internlm2",),
)

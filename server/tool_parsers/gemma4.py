"""Gemma 4: <|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|>"""

from __future__ import annotations

from server.parsing.braced_calls import BracedCalls
from server.parsing.written import Parameters, Written
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    BracedCalls(opens="<|tool_call>", closes="<tool_call|>", prefix="call:", quote='<|"|>'),
    written=(
        Written(
            call="<|tool_call>call:{name}{",
            end="}<tool_call|>",
            separator="",
            arguments=Parameters(before="{key}:", separator=",", quote='<|"|>', ends=('<|"|>',)),
            trigger="<|tool_call>",
        ),
    ),
    in_template=("<|tool_call>", "<tool_call|>"),
    model_types=("gemma4", "gemma4_text"),
)

"""Qwen-Agent: ✿FUNCTION✿: f, ✿ARGS✿: {..}. What follows ✿RESULT✿ is not for the model to write."""

from __future__ import annotations

import re

from server.parsing.headed_calls import HeadedCalls
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    HeadedCalls(
        call=("✿FUNCTION✿:", "✿FUNCTION✿"),
        header=re.compile(r"(?P<name>[\w.:/-]+)"),
        header_end=("✿ARGS✿:", "✿ARGS✿"),
        result=("✿RESULT✿:", "✿RESULT✿"),
        result_end=("✿RETURN✿:", "✿RETURN✿"),
    ),
    written=(Written(call="✿FUNCTION✿: {name}\n✿ARGS✿: ", trigger="✿FUNCTION✿"),),
    in_template=("✿FUNCTION✿",),
    stop=("✿RESULT✿", "✿RETURN✿"),
)

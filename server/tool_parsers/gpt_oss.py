"""gpt-oss: <|channel|>commentary to=functions.f <|constrain|>json<|message|>{..}<|call|>"""

from __future__ import annotations

import re

from server.parsing.headed_calls import HeadedCalls
from server.tool_parsers import ToolFormat

# The recipient stands after the channel, or after the role.
FORMAT = ToolFormat(
    HeadedCalls(
        call=("<|channel|>", "<|start|>"),
        header=re.compile(r".*?to=functions\.(?P<name>[\w.:/-]+?)(?:(?:<\||\s).*)?"),
        header_end=("<|message|>",),
        call_end=("<|call|>", "<|end|>"),
        has_nested_marks=True,
    ),
    in_template=("<|channel|>", "<|message|>"),
    model_types=("gpt_oss",),
    stop=("<|call|>",),
)

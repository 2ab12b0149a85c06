"""gpt-oss: <|channel|>commentary to=functions.f <|constrain|>json<|message|>{..}<|call|>"""

from __future__ import annotations

import re

from server.parsing.headed_calls import HeadedCalls
from server.parsing.written import Written
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
    # The mark after the arguments ends the answer, so there is room for one call.
    written=(
        Written(
            call="<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>",
            trigger="commentary to=functions.",
            most=1,
            marks=("<|constrain|>",),
        ),
    ),
    in_template=("<|channel|>", "<|message|>"),
    model_types=("gpt_oss",),
    stop=("<|call|>",),
)

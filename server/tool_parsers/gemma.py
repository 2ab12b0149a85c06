"""FunctionGemma: <start_function_call>call:f{a:<escape>x<escape>}<end_function_call>"""

from __future__ import annotations

from server.parsing.braced_calls import BracedCalls
from server.parsing.written import Parameters, Written
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    BracedCalls(
        opens="<start_function_call>",
        closes="<end_function_call>",
        prefix="call:",
        quote="<escape>",
    ),
    written=(
        Written(
            call="<start_function_call>call:{name}{",
            end="}<end_function_call>",
            separator="",
            arguments=Parameters(
                before="{key}:", separator=",", quote="<escape>", ends=("<escape>",)
            ),
            trigger="<start_function_call>",
        ),
    ),
    in_template=("<start_function_call>",),
)

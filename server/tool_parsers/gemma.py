"""FunctionGemma: <start_function_call>call:f{a:<escape>x<escape>}<end_function_call>"""

from __future__ import annotations

from server.parsing.braced_calls import BracedCalls
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    BracedCalls(
        opens="<start_function_call>",
        closes="<end_function_call>",
        prefix="call:",
        quote="<escape>",
    ),
    in_template=("<start_function_call>",),
)

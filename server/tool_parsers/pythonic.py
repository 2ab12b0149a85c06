"""Llama 4 and Llama 3.2: [f(a=1), g(b="x")], perhaps between <|python_start|> and _end."""

from __future__ import annotations

from server.parsing.python_calls import PythonCalls
from server.parsing.written import Parameters, Written
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    PythonCalls(opens=("<|python_start|>",), closes=("<|python_end|>",)),
    written=(
        Written(
            begin="[",
            call="{name}(",
            end=")",
            section_end="]",
            separator=", ",
            arguments=Parameters(
                before="{key}=", separator=", ", is_python=True, keys=r"[^\W\d]\w*"
            ),
            names=r"[^\W\d][\w.-]*",
        ),
    ),
    in_template=("func_name1(params_name1=",),
    model_types=("llama4", "llama4_text"),
)

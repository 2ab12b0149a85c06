"""LFM2: <|tool_call_start|>[f(a=1), g(b="x")]<|tool_call_end|>, or a list of JSON objects."""

from __future__ import annotations

from server.parsing.python_calls import PythonCalls
from server.parsing.written import Parameters, Written
from server.tool_parsers import ToolFormat

_BEGIN, _END = "<|tool_call_start|>", "<|tool_call_end|>"

FORMAT = ToolFormat(
    PythonCalls(opens=(_BEGIN,), closes=(_END,), is_bare=False),
    written=(
        Written(
            begin=f"{_BEGIN}[",
            call='{"name": "{name}", "arguments": ',
            end="}",
            section_end=f"]{_END}",
            separator=", ",
            trigger=_BEGIN,
            in_template='"arguments": ',
        ),
        Written(
            begin=f"{_BEGIN}[",
            call="{name}(",
            end=")",
            section_end=f"]{_END}",
            separator=", ",
            arguments=Parameters(
                before="{key}=", separator=", ", is_python=True, keys=r"[^\W\d]\w*"
            ),
            trigger=_BEGIN,
            names=r"[^\W\d][\w.-]*",
        ),
    ),
    in_template=(_BEGIN,),
    model_types=("lfm2", "lfm2_moe"),
)

"""Kimi K2: `functions.NAME:INDEX` is name and id of a call in one."""

from __future__ import annotations

import re

from server.parsing.headed_calls import HeadedCalls
from server.parsing.written import Written
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    HeadedCalls(
        section=("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"),
        call=("<|tool_call_begin|>",),
        header=re.compile(r"(?P<id>(?:functions\.)?(?P<name>[\w./-]+)(?::\d+)?)"),
        header_end=("<|tool_call_argument_begin|>",),
        call_end=("<|tool_call_end|>",),
        section_end=("<|tool_calls_section_end|>", "<|tool_call_section_end|>"),
    ),
    written=(
        Written(
            begin="<|tool_calls_section_begin|>",
            call="<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>",
            end="<|tool_call_end|>",
            section_end="<|tool_calls_section_end|>",
            separator="",
            trigger="<|tool_calls_section_begin|>",
            names=r"[\w./-]+",
        ),
    ),
    in_template=("<|tool_calls_section_begin|>",),
    model_types=("kimi_k2",),
)

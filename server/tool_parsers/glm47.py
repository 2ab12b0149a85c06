"""GLM 4.7: as GLM 4.5, without the line breaks. One grammar reads both."""

from __future__ import annotations

from server.parsing.written import Parameters, Written
from server.tool_parsers import ToolFormat
from server.tool_parsers.glm45 import ENDS, GRAMMAR

FORMAT = ToolFormat(
    GRAMMAR,
    written=(
        Written(
            call="<tool_call>{name}",
            end="</tool_call>",
            separator="",
            arguments=Parameters(
                before="<arg_key>{key}</arg_key><arg_value>", after="</arg_value>", ends=ENDS
            ),
            trigger="<tool_call>",
        ),
    ),
    in_template=("<tool_call>", "<arg_key>", "'<tool_call>' + tc.name"),
    model_types=("glm4_moe_lite",),
)

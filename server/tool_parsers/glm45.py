"""GLM 4.5: <tool_call>f, then lines of <arg_key>a</arg_key> and <arg_value>1</arg_value>."""

from __future__ import annotations

from server.parsing.written import Parameters, Written
from server.parsing.xml_calls import XmlCalls
from server.tool_parsers import ToolFormat

GRAMMAR = XmlCalls(
    section="<tool_call>",
    section_end="</tool_call>",
    name_end=("\n", "<arg_key>", "</tool_call>"),
    key="<arg_key>",
    key_end="</arg_key>",
    value="<arg_value>",
    value_end="</arg_value>",
)

ENDS = ("</arg_value>", "<arg_key>", "</tool_call>")

FORMAT = ToolFormat(
    GRAMMAR,
    written=(
        Written(
            call="<tool_call>{name}\n",
            end="</tool_call>",
            arguments=Parameters(
                before="<arg_key>{key}</arg_key>\n<arg_value>", after="</arg_value>\n", ends=ENDS
            ),
            trigger="<tool_call>",
        ),
    ),
    in_template=("<tool_call>", "<arg_key>"),
    model_types=("glm4_moe",),
)

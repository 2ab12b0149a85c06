"""GLM 4.5: <tool_call>f, then lines of <arg_key>a</arg_key> and <arg_value>1</arg_value>."""

from __future__ import annotations

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

FORMAT = ToolFormat(GRAMMAR, in_template=("<tool_call>", "<arg_key>"), model_types=("glm4_moe",))

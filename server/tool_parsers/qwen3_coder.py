"""Qwen3-Coder and Qwen 3.5: one tag per parameter.

<tool_call>
<function=f>
<parameter=a>
1
</parameter>
</function>
</tool_call>
"""

from __future__ import annotations

from server.parsing.written import Parameters, Written
from server.parsing.xml_calls import XmlCalls
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    XmlCalls(
        section="<tool_call>",
        section_end="</tool_call>",
        function="<function=",
        name_end=(">",),
        function_end="</function>",
        key="<parameter=",
        key_end=">",
        value_end="</parameter>",
        trims_lines=True,
    ),
    written=(
        Written(
            call="<tool_call>\n<function={name}>\n",
            end="</function>\n</tool_call>",
            arguments=Parameters(
                before="<parameter={key}>\n",
                after="\n</parameter>\n",
                ends=("</parameter>", "<parameter=", "</function>", "</tool_call>"),
            ),
            trigger="<tool_call>",
        ),
    ),
    in_template=("<tool_call>", "<function="),
)

"""Seed-OSS: as Qwen3-Coder, with marks of its own and values on the line of their tags.

<seed:tool_call>
<function=f>
<parameter=a>1</parameter>
</function>
</seed:tool_call>
"""

from __future__ import annotations

from server.parsing.written import Parameters, Written
from server.parsing.xml_calls import XmlCalls
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    XmlCalls(
        section="<seed:tool_call>",
        section_end="</seed:tool_call>",
        function="<function=",
        name_end=(">",),
        function_end="</function>",
        key="<parameter=",
        key_end=">",
        value_end="</parameter>",
    ),
    written=(
        Written(
            call="<seed:tool_call>\n<function={name}>\n",
            end="</function>\n</seed:tool_call>",
            arguments=Parameters(
                before="<parameter={key}>",
                after="</parameter>\n",
                ends=("</parameter>", "<parameter=", "</function>", "</seed:tool_call>"),
            ),
            trigger="<seed:tool_call>",
        ),
    ),
    in_template=("<seed:tool_call>", "<function="),
    model_types=("seed_oss",),
)

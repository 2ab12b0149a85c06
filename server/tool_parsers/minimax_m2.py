"""MiniMax M2: <minimax:tool_call><invoke name="f"><parameter name="a">1</parameter></invoke>.."""

from __future__ import annotations

from server.parsing.written import Parameters, Written
from server.parsing.xml_calls import XmlCalls
from server.tool_parsers import ToolFormat

FORMAT = ToolFormat(
    XmlCalls(
        section="<minimax:tool_call>",
        section_end="</minimax:tool_call>",
        function="<invoke name=",
        name_end=(">",),
        function_end="</invoke>",
        key="<parameter name=",
        key_end=">",
        value_end="</parameter>",
        trims_lines=True,
    ),
    written=(
        Written(
            begin="<minimax:tool_call>\n",
            call='<invoke name="{name}">\n',
            end="</invoke>",
            section_end="\n</minimax:tool_call>",
            arguments=Parameters(
                before='<parameter name="{key}">',
                after="</parameter>\n",
                ends=("</parameter>", "<parameter name=", "</invoke>", "</minimax:tool_call>"),
            ),
            trigger="<minimax:tool_call>",
        ),
    ),
    in_template=("<minimax:tool_call>",),
    model_types=("minimax_m2",),
)

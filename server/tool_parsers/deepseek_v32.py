"""DeepSeek V3.2: a tag per parameter, which says whether its value is a string.

<｜DSML｜function_calls>
<｜DSML｜invoke name="f">
<｜DSML｜parameter name="a" string="false">1</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜function_calls>
"""

from __future__ import annotations

import re

from server.parsing.written import Parameters, Written
from server.parsing.xml_calls import XmlCalls
from server.tool_parsers import ToolFormat

_VALUE_END = "</｜DSML｜parameter>"
_ENDS = (_VALUE_END, "<｜DSML｜parameter name=", "</｜DSML｜invoke>", "</｜DSML｜function_calls>")

FORMAT = ToolFormat(
    XmlCalls(
        section="<｜DSML｜function_calls>",
        section_end="</｜DSML｜function_calls>",
        function="<｜DSML｜invoke name=",
        name_end=(">",),
        function_end="</｜DSML｜invoke>",
        key="<｜DSML｜parameter name=",
        key_end=">",
        value_end=_VALUE_END,
        typed_key=re.compile(r"\"(?P<key>[^\"]*)\"\s+string=\"(?P<is_string>true|false)\""),
    ),
    written=(
        Written(
            begin="<｜DSML｜function_calls>\n",
            call='<｜DSML｜invoke name="{name}">\n',
            end="</｜DSML｜invoke>",
            section_end="\n</｜DSML｜function_calls>",
            arguments=Parameters(
                before='<｜DSML｜parameter name="{key}" string="{is_string}">',
                after=f"{_VALUE_END}\n",
                ends=_ENDS,
            ),
            trigger="<｜DSML｜function_calls>",
        ),
    ),
    in_template=("｜DSML｜", "function_calls>"),
)

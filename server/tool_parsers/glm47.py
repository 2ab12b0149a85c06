"""GLM 4.7: as GLM 4.5, without the line breaks. One grammar reads both."""

from __future__ import annotations

from server.tool_parsers import ToolFormat
from server.tool_parsers.glm45 import GRAMMAR

FORMAT = ToolFormat(
    GRAMMAR,
    in_template=("<tool_call>", "<arg_key>", "'<tool_call>' + tc.name"),
    model_types=("glm4_moe_lite",),
)

"""Magistral: [THINK]..[/THINK]"""

from __future__ import annotations

from server.parsing.tagged_reasoning import TaggedReasoning
from server.reasoning_parsers import ReasoningFormat

FORMAT = ReasoningFormat(TaggedReasoning("[THINK]", "[/THINK]"), in_template=("[/THINK]",))

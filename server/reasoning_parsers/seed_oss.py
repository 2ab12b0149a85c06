"""Seed-OSS: <seed:think>..</seed:think>"""

from __future__ import annotations

from server.parsing.tagged_reasoning import TaggedReasoning
from server.reasoning_parsers import ReasoningFormat

FORMAT = ReasoningFormat(
    TaggedReasoning("<seed:think>", "</seed:think>"), in_template=("</seed:think>",)
)

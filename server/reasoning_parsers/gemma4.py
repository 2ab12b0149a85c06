"""Gemma 4: <|channel>thought, a line break, the reasoning, <channel|>"""

from __future__ import annotations

from server.parsing.tagged_reasoning import TaggedReasoning
from server.reasoning_parsers import ReasoningFormat

FORMAT = ReasoningFormat(
    TaggedReasoning("<|channel>thought", "<channel|>"),
    in_template=("<|channel>", "<channel|>"),
    model_types=("gemma4", "gemma4_text"),
)

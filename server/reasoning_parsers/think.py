"""Qwen 3, DeepSeek R1, GLM 4.5, MiniMax: <think>..</think>, which the prompt may have opened."""

from __future__ import annotations

from server.parsing.tagged_reasoning import TaggedReasoning
from server.reasoning_parsers import ReasoningFormat

FORMAT = ReasoningFormat(TaggedReasoning("<think>", "</think>"), in_template=("</think>",))

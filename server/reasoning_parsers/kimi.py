"""Kimi-VL-Thinking: ◁think▷..◁/think▷"""

from __future__ import annotations

from server.parsing.tagged_reasoning import TaggedReasoning
from server.reasoning_parsers import ReasoningFormat

FORMAT = ReasoningFormat(TaggedReasoning("◁think▷", "◁/think▷"), in_template=("think▷",))

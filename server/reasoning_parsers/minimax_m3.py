"""MiniMax-M3: <mm:think>..</mm:think>"""

from __future__ import annotations

from server.parsing.tagged_reasoning import TaggedReasoning
from server.reasoning_parsers import ReasoningFormat

FORMAT = ReasoningFormat(TaggedReasoning("<mm:think>", "</mm:think>"), in_template=("</mm:think>",))

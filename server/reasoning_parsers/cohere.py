"""Command R7B and A: <|START_THINKING|>..<|END_THINKING|>, then an action or a response.

The marks around a response, <|START_RESPONSE|>..<|END_RESPONSE|>, are no part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.parsing.events import Content, Reasoning
from server.parsing.source import Source, Steps, as_events
from server.reasoning_parsers import ReasoningFormat

_OPENS, _CLOSES = "<|START_THINKING|>", "<|END_THINKING|>"
_RESPONSE = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")
_MARKS = (_OPENS, _CLOSES, *_RESPONSE)


@dataclass(frozen=True, slots=True)
class Cohere:
    """Reasoning may come between actions, too."""

    marks: tuple[str, ...] = _MARKS
    opens: str = _OPENS
    closes: str = _CLOSES
    ends: tuple[str, ...] = (_CLOSES,)
    reopens: bool = True

    def is_open(self, prompt: str) -> bool:
        """Whether the prompt ends with the opening mark."""
        return prompt.rstrip().endswith(_OPENS)

    def read(self, source: Source, is_open: bool) -> Steps[None]:
        """The grammar of a whole answer."""
        if is_open:
            yield from self._reasoning(source)
        while (yield from source.peek()):
            if (yield from source.accept(_OPENS)):
                yield from self._reasoning(source)
            elif not (yield from source.accept(*_RESPONSE)):
                yield from as_events(source.before((_OPENS, *_RESPONSE)), Content)

    def _reasoning(self, source: Source) -> Steps[None]:
        yield from source.space()
        yield from as_events(source.before((_CLOSES,)), Reasoning)
        yield from source.accept(_CLOSES)


FORMAT = ReasoningFormat(Cohere(), in_template=(_OPENS, _CLOSES))

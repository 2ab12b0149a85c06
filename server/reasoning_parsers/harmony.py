"""gpt-oss: messages in channels.

<|channel|>analysis<|message|>reasoning<|end|>
<|start|>assistant<|channel|>final<|message|>content<|return|>

A message to a recipient is a call; it goes on as it is, to the tool-call parser.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.parsing.events import Content, Reasoning
from server.parsing.source import Source, Steps, Wait, as_events
from server.reasoning_parsers import ReasoningFormat

_BEGIN = ("<|channel|>", "<|start|>")
_MESSAGE = "<|message|>"
_END = ("<|end|>", "<|return|>", "<|call|>")
_ANALYSIS = re.compile(r"\s*(assistant)?\s*(<\|channel\|>)?analysis")


@dataclass(frozen=True, slots=True)
class Harmony:
    """Every message says in its header who reads it."""

    marks: tuple[str, ...] = (*_BEGIN, _MESSAGE, *_END)
    opens: str = "<|channel|>analysis<|message|>"
    closes: str = "<|end|>"
    ends: tuple[str, ...] = (*_END, *_BEGIN)
    reopens: bool = True

    def is_open(self, prompt: str) -> bool:
        """Whether the prompt ends inside a message of the analysis channel."""
        return prompt.endswith(self.opens)

    def read(self, source: Source, is_open: bool) -> Steps[None]:
        """The grammar of a whole answer."""
        if is_open:
            yield from as_events(source.before((*_END, *_BEGIN)), Reasoning)
        while (yield from source.peek()):
            if (yield from source.accept(*_END)):
                continue
            mark = yield from source.starts_with(_BEGIN)
            if not mark:
                yield from as_events(source.before((*_BEGIN, *_END)), Content)
                continue
            yield from self._message(source)

    def _message(self, source: Source) -> Steps[None]:
        header, is_message = yield from self._header(source)
        if not is_message:
            yield Content(header)
        elif "to=" in header:
            yield Content(header + _MESSAGE)
            mark = yield from as_events(source.before((*_END, *_BEGIN)), Content)
            if mark in _END:
                yield Content(source.take(len(mark)))
        else:
            is_analysis = _ANALYSIS.match(header.removeprefix("<|start|>").removeprefix(_BEGIN[0]))
            yield from as_events(
                source.before((*_END, *_BEGIN)), Reasoning if is_analysis else Content
            )

    def _header(self, source: Source) -> Wait[tuple[str, bool]]:
        """Reads up to the message itself; the second value is False where none follows."""
        header = [source.take(len((yield from source.starts_with(_BEGIN))))]
        while True:
            text, mark = yield from source.collect((_MESSAGE, "<|channel|>", *_END))
            header.append(text)
            if mark == _MESSAGE:
                source.take(len(mark))
                return "".join(header), True
            if mark != "<|channel|>":
                return "".join(header), False
            header.append(source.take(len(mark)))


FORMAT = ReasoningFormat(
    Harmony(), in_template=("<|channel|>", "<|message|>"), model_types=("gpt_oss",)
)

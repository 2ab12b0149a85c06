"""The text of an answer -> reasoning, content and calls, in one pass for streams and wholes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from server.output import Delta
from server.parsing.calls import Calls
from server.parsing.events import Content, Event, Reasoning, ToolCallArguments, ToolCallStart
from server.parsing.source import Parser
from server.reasoning_parsers import ReasoningGrammar
from server.tool_parsers import ToolFormat

if TYPE_CHECKING:
    from server.grammars.calls import CallStyle


@dataclass(frozen=True, slots=True)
class AnswerSyntax:
    """How one request's answers are to be read.

    Attributes:
        tools: The format of calls, or None: then nothing is a call.
        reasoning: The format of reasoning, or None.
        schemas: The parameters' schemas of the functions that may be called, by name.
        is_reasoning_open: Whether the prompt ends inside the reasoning.
        max_calls: Further calls are left out; None for no limit.
        finish_reason: Of an answer with calls.
        style: How calls are written, where there are any.
    """

    tools: ToolFormat | None = None
    reasoning: ReasoningGrammar | None = None
    schemas: Mapping[str, Mapping[str, Any]] | None = None
    is_reasoning_open: bool = False
    max_calls: int | None = None
    finish_reason: str = "tool_calls"
    style: CallStyle | None = None


class AnswerParser:
    """Reads one answer: reasoning first, and what is left of it for calls.

    Attributes:
        has_calls: Whether there has been a call so far.
    """

    def __init__(self, syntax: AnswerSyntax):
        self.has_calls = False
        self._max_calls = syntax.max_calls
        reasoning, tools = syntax.reasoning, syntax.tools
        self._reasoning = self._tools = None
        if reasoning is not None:
            is_open = syntax.is_reasoning_open
            self._reasoning = Parser(lambda source: reasoning.read(source, is_open))
        if tools is not None:
            calls = Calls(syntax.schemas or {}, tools.make_id)
            self._tools = Parser(lambda source: tools.grammar.read(source, calls))

    def feed(self, text: str) -> list[Event]:
        """Takes the next text; returns what it made certain, text in as few events as can be."""
        events: list[Event] = [Content(text)] if text else []
        if self._reasoning is not None:
            events = self._reasoning.feed(text)
        return self._read_calls(events)

    def finish(self) -> list[Event]:
        """Ends the text; returns what was held back."""
        events = self._reasoning.finish() if self._reasoning is not None else []
        if self._tools is None:
            return self._read_calls(events)
        return self._read_calls(events) + self._seen(self._tools.finish())

    def _read_calls(self, events: list[Event]) -> list[Event]:
        if self._tools is None:
            return _merged(events)
        read: list[Event] = []
        for event in events:
            read += self._tools.feed(event.text) if isinstance(event, Content) else [event]
        return self._seen(read)

    def _seen(self, events: list[Event]) -> list[Event]:
        most = self._max_calls
        if most is not None:
            events = [e for e in events if isinstance(e, Content | Reasoning) or e.index < most]
        self.has_calls |= any(isinstance(event, ToolCallStart) for event in events)
        return _merged(events)


def _merged(events: list[Event]) -> list[Event]:
    """Neighbours of one kind as one event."""
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        match last, event:
            case (Content(a), Content(b)):
                merged[-1] = Content(a + b)
            case (Reasoning(a), Reasoning(b)):
                merged[-1] = Reasoning(a + b)
            case (ToolCallArguments(i, a), ToolCallArguments(j, b)) if i == j:
                merged[-1] = ToolCallArguments(i, a + b)
            case _:
                merged.append(event)
    return merged


async def parsed(
    deltas: AsyncIterator[Delta], syntaxes: Sequence[AnswerSyntax]
) -> AsyncGenerator[Delta, None]:
    """The deltas with events in the place of their text; `syntaxes` has one entry per choice."""
    parsers = [AnswerParser(syntax) for syntax in syntaxes]
    async for delta in deltas:
        parser = parsers[delta.index]
        events = parser.feed(delta.text)
        finish_reason = delta.finish_reason
        if finish_reason is not None:
            events = _merged(events + parser.finish())
            if finish_reason == "stop" and parser.has_calls:
                finish_reason = syntaxes[delta.index].finish_reason
        if events or delta.logprobs or finish_reason:
            yield replace(delta, text="", events=tuple(events), finish_reason=finish_reason)

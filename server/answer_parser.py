"""The text of an answer -> reasoning, content and calls, in one pass for streams and wholes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from server import limits
from server.output import Delta
from server.parsing.call_limit import CallLimit
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
        max_calls: The answer ends before a further call; None for no limit.
        max_equal: How often it may have the same call; it ends where that is made once more.
        finish_reason: Of an answer with calls.
        style: How calls are written, where there are any.
        is_forced: The model is held to calls: what is read as text is half of one.
        leaves_out_reasoning: The caller does not want to see it.
        certain: Texts after which it is held to a call.
    """

    tools: ToolFormat | None = None
    reasoning: ReasoningGrammar | None = None
    schemas: Mapping[str, Mapping[str, Any]] | None = None
    is_reasoning_open: bool = False
    max_calls: int | None = None
    max_equal: int = limits.MAX_EQUAL_CALLS
    finish_reason: str = "tool_calls"
    style: CallStyle | None = None
    is_forced: bool = False
    leaves_out_reasoning: bool = False
    certain: tuple[str, ...] = ()

    def is_cut(self, finish_reason: str, stop_reason: str | int | None) -> bool:
        """Whether an answer ended before the model had finished it."""
        own = () if self.tools is None else self.tools.stop
        return finish_reason == "length" or (
            isinstance(stop_reason, str) and stop_reason not in own
        )


class AnswerParser:
    """Reads one answer: reasoning first, and what is left of it for calls."""

    def __init__(self, syntax: AnswerSyntax):
        self._limit = CallLimit(syntax.max_calls, syntax.max_equal)
        self._left_out: tuple[type[Event], ...] = (
            *((Content,) if syntax.is_forced else ()),
            *((Reasoning,) if syntax.leaves_out_reasoning else ()),
        )
        reasoning, tools = syntax.reasoning, syntax.tools
        self._calls = calls = Calls(syntax.schemas or {}, certain=syntax.certain)
        self._reasoning = self._tools = None
        if reasoning is not None:
            is_open = syntax.is_reasoning_open
            self._reasoning = Parser(lambda source: reasoning.read(source, is_open))
        if tools is not None:
            calls.make_id = tools.make_id
            self._tools = Parser(lambda source: tools.grammar.read(source, calls))

    @property
    def has_calls(self) -> bool:
        """Whether there has been a call, and none that was cut off."""
        return self._limit.has_calls and not self._calls.was_cut

    @property
    def is_over(self) -> bool:
        """The model has gone on to a call too many: the answer ends here."""
        return self._limit.is_over

    def feed(self, text: str) -> list[Event]:
        """Takes the next text; returns what it made certain, text in as few events as can be."""
        events: list[Event] = [Content(text)] if text else []
        if self._reasoning is not None:
            events = self._reasoning.feed(text)
        return self._read_calls(events)

    def finish(self, *, is_cut: bool = False) -> list[Event]:
        """Ends the text; returns what was held back.

        Args:
            is_cut: The model had not finished: a call that it had begun is given as far as it was
                written, or not at all.
        """
        events = self._reasoning.finish() if self._reasoning is not None else []
        if self._tools is None:
            return self._read_calls(events)
        read = self._read_calls(events) + self._seen(self._tools.finish(is_cut=is_cut))
        return _merged(read + self._limit.finish(is_cut=is_cut))

    def _read_calls(self, events: list[Event]) -> list[Event]:
        if self._tools is None:
            return _merged(self._wanted(events))
        read: list[Event] = []
        for event in events:
            read += self._tools.feed(event.text) if isinstance(event, Content) else [event]
        return self._seen(read)

    def _seen(self, events: list[Event]) -> list[Event]:
        return _merged(self._limit.take(self._wanted(events)))

    def _wanted(self, events: list[Event]) -> list[Event]:
        return [event for event in events if not isinstance(event, self._left_out)]


def _merged(events: list[Event]) -> list[Event]:
    """Neighbours of one kind as one event."""
    if len(events) < 2:
        return events
    return [_joined(list(group)) for _, group in groupby(events, _kind_of)]


def _kind_of(event: Event) -> tuple[type[Event], int]:
    """What events have in common that can be one. (Each call starts once.)"""
    index = event.index if isinstance(event, ToolCallStart | ToolCallArguments) else 0
    return type(event), index


def _joined(events: Sequence[Event]) -> Event:
    """One event for several of one kind."""
    first, *others = events
    if not others:
        return first
    if isinstance(first, ToolCallArguments):
        return replace(first, fragment="".join(e.fragment for e in events))  # pyright: ignore
    return replace(first, text="".join(e.text for e in events))  # pyright: ignore


async def parsed(
    deltas: AsyncIterator[Delta], syntaxes: Sequence[AnswerSyntax], ended: set[int]
) -> AsyncGenerator[Delta, None]:
    """The deltas with events in the place of their text.

    Args:
        deltas: Of all choices.
        syntaxes: One entry per choice.
        ended: Takes the index of a choice that ends here, although the model would go on.
    """
    parsers = [AnswerParser(syntax) for syntax in syntaxes]
    async for delta in deltas:
        parser, syntax = parsers[delta.index], syntaxes[delta.index]
        events = parser.feed(delta.text)
        finish_reason = delta.finish_reason
        if finish_reason is not None and not parser.is_over:
            is_cut = syntax.is_cut(finish_reason, delta.stop_reason)
            events = _merged(events + parser.finish(is_cut=is_cut))
            if finish_reason == "stop" and parser.has_calls:
                finish_reason = syntax.finish_reason
        if parser.is_over:
            ended.add(delta.index)
            finish_reason = syntax.finish_reason
        if events or delta.logprobs or finish_reason:
            yield replace(delta, text="", events=tuple(events), finish_reason=finish_reason)

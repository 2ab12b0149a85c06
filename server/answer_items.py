"""An answer as a list of items - texts, reasoning, calls - in the order the model wrote them.

The responses API calls them output items, the messages API content blocks. Both write the changes
that `Items` yields, and their whole answers are what the changes of the same deltas add up to.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic_core import from_json

from rtpjax.engine.request import TokenLogprob
from server.output import Choice, Delta
from server.parsing.events import Content, Event, Reasoning, ToolCallArguments, ToolCallStart
from server.parsing.json_object import ObjectBeginning

Kind = Literal["text", "reasoning", "call"]


@dataclass(slots=True)
class Item:
    """One item, as far as it is known.

    Attributes:
        index: Its place in the answer.
        call_id, name: Of a call.
        logprobs: Of its tokens, if it is a text and they were asked for.
        is_cut: The answer ran out of tokens in it.
    """

    index: int
    kind: Kind
    call_id: str = ""
    name: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    is_cut: bool = False
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text, the reasoning, or the call's arguments as the model wrote them."""
        return "".join(self.parts)


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to an item: it opens, gets more text, and closes before the next one opens."""

    item: Item
    step: Literal["open", "add", "close"]
    text: str = ""
    logprobs: Sequence[TokenLogprob] = ()


class Items:
    """Sorts the deltas of one choice into items.

    Attributes:
        items: Those that have opened.
        finish_reason: Why the answer ended, once it has.
    """

    def __init__(self, *, has_object_arguments: bool = False, is_forced: bool = False):
        """Args:
        has_object_arguments: What cannot be part of a JSON object is no argument but text.
        is_forced: The answer is calls and nothing else; without one it has no items.
        """
        self.items: list[Item] = []
        self.finish_reason: str | None = None
        self._has_object_arguments = has_object_arguments
        self._is_forced = is_forced
        self._arguments: ObjectBeginning | None = None
        self._open: Item | None = None
        self._waiting: list[TokenLogprob] = []

    def take(self, delta: Delta) -> Iterator[Change]:
        """The changes that a delta makes. Each is made when it is read: the item is as it says."""
        events: Sequence[Event] = delta.events or ()
        if delta.events is None and delta.text:
            events = (Content(delta.text),)
        # Log-probabilities of text that is held back wait until it is known to be text.
        self._waiting += delta.logprobs or ()
        for event in events:
            yield from self._changes(event)
        if events:
            self._waiting = []
        if delta.finish_reason is not None:
            yield from self._finish(delta.finish_reason)

    def take_whole(self, choice: Choice) -> None:
        """Takes all that a whole answer was joined from."""
        for delta in choice.parts:
            for _ in self.take(delta):
                pass

    def _changes(self, event: Event) -> Iterator[Change]:
        match event:
            case Content(text):
                yield from self._add("text", text)
            case Reasoning(text):
                yield from self._add("reasoning", text)
            case ToolCallStart(_, call_id, name):
                yield from self._start("call", call_id, name)
                self._arguments = ObjectBeginning() if self._has_object_arguments else None
            case ToolCallArguments(_, fragment):
                yield from self._add_arguments(fragment)

    def _start(self, kind: Kind, call_id: str = "", name: str = "") -> Iterator[Change]:
        yield from self._close()
        self._open = Item(len(self.items), kind, call_id, name)
        self.items.append(self._open)
        yield Change(self._open, "open")

    def _close(self) -> Iterator[Change]:
        if self._open is not None:
            item, self._open = self._open, None
            yield Change(item, "close")

    def _add(self, kind: Kind, text: str) -> Iterator[Change]:
        if not text:
            return
        if self._open is None or self._open.kind != kind:
            yield from self._start(kind)
        assert self._open is not None
        yield self._added(self._open, text)

    def _added(self, item: Item, text: str) -> Change:
        logprobs: list[TokenLogprob] = []
        if item.kind == "text":
            logprobs, self._waiting = self._waiting, []
        item.parts.append(text)
        item.logprobs += logprobs
        return Change(item, "add", text, logprobs)

    def _add_arguments(self, fragment: str) -> Iterator[Change]:
        item = self._open
        if item is None or item.kind != "call":  # it was closed before text that is no argument
            yield from self._add("text", fragment)
            return
        at = len(fragment) if self._arguments is None else self._arguments.take(fragment)
        if at:
            yield self._added(item, fragment[:at])
        yield from self._add("text", fragment[at:])

    def _finish(self, reason: str) -> Iterator[Change]:
        self.finish_reason = reason
        if not (self.items or self._is_forced):  # an answer has something in it
            yield from self._start("text")
        if self._open is None:
            return
        if self._open.kind == "text" and self._waiting:  # of tokens without a text
            yield self._added(self._open, "")
        self._open.is_cut = reason == "length"
        yield from self._close()


def object_of(arguments: str) -> dict[str, Any]:
    """The JSON object in a call's arguments; of one that was cut, what is there of it."""
    value = _finite(_partial(arguments)) if arguments.strip() else {}
    return value if isinstance(value, dict) else {}


def _finite(value: Any) -> Any:
    """The value with the largest number there is for larger ones: JSON cannot write infinity."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    if isinstance(value, float) and math.isinf(value):
        return math.copysign(sys.float_info.max, value)
    return value


def _partial(text: str) -> Any:
    """JSON that may end anywhere, or None if it is none."""
    try:
        return from_json(text.encode(), allow_inf_nan=False, allow_partial=True)
    except ValueError:
        return None

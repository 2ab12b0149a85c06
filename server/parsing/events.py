"""What an answer is made of, as it becomes known: text, reasoning and calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model wrote for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call whose name is known. Its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """The next part of a call's arguments: JSON as the model wrote it."""

    index: int
    fragment: str


Event = Content | Reasoning | ToolCallStart | ToolCallArguments


@dataclass(slots=True)
class Call:
    """A whole call."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Message:
    """A whole answer: what its events add up to."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)


def fold(events: Iterable[Event]) -> Message:
    """The answer that a stream of events spells."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[tuple[ToolCallStart, list[str]]] = []
    for event in events:
        match event:
            case Content(text):
                content.append(text)
            case Reasoning(text):
                reasoning.append(text)
            case ToolCallStart():
                calls.append((event, []))
            case ToolCallArguments(index, fragment):
                calls[index][1].append(fragment)
    return Message(
        content="".join(content),
        reasoning="".join(reasoning),
        calls=[Call(start.id, start.name, "".join(parts)) for start, parts in calls],
    )

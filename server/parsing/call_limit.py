"""Where an answer goes beyond its calls: the most there may be, and calls that were made before.

A weak model that may call again often makes the same call again, until its tokens are used up. The
first call too many ends the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.parsing.events import Content, Event, Reasoning, ToolCallArguments, ToolCallStart

_SPACE = " \t\n\r"


@dataclass(slots=True)
class _Written:
    """The arguments of one call as they come, without the white space between their tokens.

    Attributes:
        text_len: Of the text so far.
        is_whole: They are a complete JSON object.
    """

    text_len: int = 0
    is_whole: bool = False
    _parts: list[str] = field(default_factory=list)
    _depth: int = 0
    _in_string: bool = False
    _is_escaped: bool = False

    def add(self, fragment: str) -> str:
        """Takes the next part; returns what it adds to the text."""
        added = "".join(filter(self._keeps, fragment))
        self._parts.append(added)
        self.text_len += len(added)
        return added

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._parts)

    def _keeps(self, character: str) -> bool:
        if self._in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self._in_string = False
            return True
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.is_whole = self._depth <= 0
        return character not in _SPACE


@dataclass(slots=True)
class CallLimit:
    """Passes the events of one answer on, up to the first call too many.

    A call that is equal so far to one that may not be made again waits until it differs.

    Attributes:
        max_calls: Most calls, or None.
        max_equal: How often one call may be made.
        is_over: The answer has ended: nothing more is passed on.
        has_calls: A call has been passed on.
    """

    max_calls: int | None = None
    max_equal: int = 1
    is_over: bool = False
    has_calls: bool = False
    _made: dict[str, Counter[str]] = field(default_factory=dict)
    _name: str = ""
    _written: _Written | None = None
    _waiting: list[Event] = field(default_factory=list)
    _rivals: list[str] = field(default_factory=list)

    def take(self, events: Sequence[Event]) -> list[Event]:
        """What may be passed on now."""
        return [passed for event in events for passed in self._take(event)]

    def finish(self, *, is_cut: bool) -> list[Event]:
        """What is still waiting when the answer has ended.

        Args:
            is_cut: It was cut off: a call that repeats one as far as it goes is left out.
        """
        waiting = self._close()
        return [] if is_cut else waiting

    def _take(self, event: Event) -> list[Event]:
        if self.is_over:
            return []
        match event:
            case Content() | Reasoning():
                return [*self._close(), event]
            case ToolCallStart():
                before = self._close()
                return before if self.is_over else before + self._start(event)
            case ToolCallArguments():
                return self._add(event)

    def _start(self, event: ToolCallStart) -> list[Event]:
        if self.max_calls is not None and event.index >= self.max_calls:
            self.is_over = True
            return []
        self._name, self._written = event.name, _Written()
        made = self._made.setdefault(event.name, Counter())
        self._rivals = [text for text, number in made.items() if number >= self.max_equal]
        self._waiting = [event]
        return self._released()

    def _add(self, event: ToolCallArguments) -> list[Event]:
        if self._written is None:  # after the end of an object there are no more arguments
            return [event]
        at = self._written.text_len
        added = self._written.add(event.fragment)
        self._rivals = [text for text in self._rivals if text.startswith(added, at)]
        self._waiting.append(event)
        passed = self._released()
        return passed + self._close() if self._written.is_whole else passed

    def _released(self) -> list[Event]:
        if self._rivals:
            return []
        passed, self._waiting = self._waiting, []
        self.has_calls |= bool(passed)
        return passed

    def _close(self) -> list[Event]:
        """Counts the open call as made; one too many ends the answer."""
        if self._written is None:
            return []
        text, self._written = self._written.text, None
        if text in self._rivals:
            self.is_over = True
            return []
        self._made[self._name][text] += 1
        self._rivals = []
        return self._released()

"""Text that arrives in pieces, and grammars that read it as if it were there.

A grammar is a generator. It reads from a `Source`, yields events as soon as they are certain, and
yields None where it cannot decide without more text. As it sees only the text and never where the
pieces end, its events are the same however the text is cut.

    def grammar(source):                      feed("<a")   ->  []
        yield from source.before("<b>")       feed("c>x")  ->  ["<ac>x"]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from server.parsing.events import Event

T = TypeVar("T")
# None asks for more text; the value is what the reading step returns.
Steps = Generator[Event | None, None, T]
# The same for steps that yield pieces of text, which their caller makes events of.
Pieces = Generator[str | None, None, T]
Wait = Generator[None, None, T]

_SPACE = re.compile(r"\s*")
# White space that is looked over for a mark behind it; behind more there is none.
_MAX_SPACE = 1024
# Text that may be read again for nothing; more only in proportion to the answer.
_MAX_REREAD = 16 * 1024


class NotACall(Exception):  # noqa: N818 (a turn in the grammar, not an error)
    """What looked like a call is not one; its text goes back where it came from."""


class Cut(Exception):  # noqa: N818 (a turn in the grammar, not an error)
    """The answer was cut off inside a call: what is left of its text is half a mark or a value."""


class Source:
    """What has arrived and has not been read.

    Attributes:
        is_ended: No more text will come.
        is_cut: The model had not finished when the text ended. Inside a call nothing is made up
            then: what waits for more text raises Cut.
        is_in_call: The grammar reads what may be a call.
    """

    def __init__(self) -> None:
        self.is_ended = False
        self.is_cut = False
        self.is_in_call = False
        self._text = ""
        self._at = 0
        self._dropped_len = 0  # what was read and is not in the text any more
        self._reread_len = 0
        # What was read since `keep` and is not in the text any more, and where in it that goes on.
        self._kept: list[str] | None = None
        self._kept_from = 0

    def push(self, text: str) -> None:
        """Adds text at the end."""
        # Only what is unread is copied: each push costs what it brings, however long a call is.
        if self._kept is not None:
            self._kept.append(self._text[self._kept_from : self._at])
            self._kept_from = 0
        self._dropped_len += self._at
        self._text = self._text[self._at :] + text
        self._at = 0

    @property
    def rest(self) -> str:
        """The unread text that has arrived."""
        return self._text[self._at :]

    def take(self, length: int) -> str:
        """Reads that many characters, which must have arrived."""
        piece = self._text[self._at : self._at + length]
        self._at += length
        return piece

    def keep(self) -> None:
        """From here on, text that is read can be unread."""
        self._kept = []
        self._kept_from = self._at

    def commit(self) -> None:
        """What was read since `keep` stays read."""
        self._kept = None

    def rewind(self) -> None:
        """What was read since `keep` is unread again; nothing after `commit`."""
        if self._kept is None:
            return
        kept = "".join(self._kept)
        self._reread_len += len(kept) + self._at - self._kept_from
        self._text = kept + self._text[self._kept_from :]
        self._dropped_len += self._kept_from - len(kept)
        self._at = 0
        self._kept = None

    @property
    def may_rewind(self) -> bool:
        """Whether reading more that may turn out to be none is worth it.

        An answer can begin calls again and again that are none, each of which is only known where
        the answer ends. All of them together would be read in the square of its length.
        """
        return self._reread_len <= _MAX_REREAD + self._dropped_len + self._at

    def wait(self) -> Wait[bool]:
        """Waits for more text; False where there is none.

        Raises:
            Cut: There is none since the answer was cut off inside a call.
        """
        if self.is_ended:
            if self.is_cut and self.is_in_call:
                raise Cut
            return False
        yield
        return True

    def peek(self) -> Wait[str]:
        """The next character, "" at the end."""
        while self._at >= len(self._text):
            if not (yield from self.wait()):
                return ""
        return self._text[self._at]

    def space(self) -> Wait[str]:
        """Reads white space."""
        found: list[str] = []
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            found.append(self.take(match.end() - self._at))
            if self._at < len(self._text) or not (yield from self.wait()):
                return "".join(found)

    def starts_with(self, marks: Sequence[str]) -> Wait[str]:
        """The mark that comes next, the longest of several, or ""; reads nothing."""
        while True:
            rest = self.rest
            open_marks = [m for m in marks if len(m) > len(rest) and m.startswith(rest)]
            if not open_marks or not (yield from self.wait()):
                return max((m for m in marks if rest.startswith(m)), key=len, default="")

    def accept(self, *marks: str) -> Wait[str]:
        """Reads one of the marks if it comes next; returns it, or ""."""
        found = yield from self.starts_with(marks)
        self.take(len(found))
        return found

    def is_followed_by(self, length: int, marks: Sequence[str]) -> Wait[bool]:
        """Whether after `length` characters and white space a mark comes, or the end."""
        while True:
            rest = self.rest[length:]
            tail = rest.lstrip()
            if len(rest) - len(tail) > _MAX_SPACE:
                return False
            if tail.startswith(tuple(marks)):
                return True
            if tail and not any(mark.startswith(tail) for mark in marks):
                return False
            if not (yield from self.wait()):
                return not tail

    def before(
        self, marks: Sequence[str], is_real: Callable[[str], Wait[bool]] | None = None
    ) -> Pieces[str]:
        """Yields the text up to the next mark; returns the mark, unread, or "" at the end.

        Args:
            marks: Of two at the same place the longer one counts.
            is_real: Says whether a mark that was found is one, or plain text.
        """
        if not marks:
            return (yield from self._to_end())
        pattern = re.compile("|".join(re.escape(m) for m in sorted(marks, key=len, reverse=True)))
        while True:
            match = pattern.search(self._text, self._at)
            certain = match.start() if match else len(self._text)
            held = partial_mark(self._text, self._at, certain, marks)
            is_last = self.is_ended and not (self.is_cut and self.is_in_call)
            if match is not None and not is_last:
                # A longer mark may begin where a shorter one was found.
                tail = self._text[match.start() :]
                if any(len(m) > len(tail) and m.startswith(tail) for m in marks):
                    match = None
            if match is None and is_last:
                yield from self._give(len(self._text))
                return ""
            if match is None:
                yield from self._give(held)
                yield from self.wait()
                continue
            yield from self._give(match.start())
            if is_real is None or (yield from is_real(match[0])):
                return match[0]
            yield self.take(1)

    def collect(self, marks: Sequence[str]) -> Wait[tuple[str, str]]:
        """Reads the text up to the next mark; returns it and the mark, unread."""
        return (yield from joined(self.before(marks)))

    def _give(self, end: int) -> Pieces[None]:
        if end > self._at:
            yield self.take(end - self._at)

    def _to_end(self) -> Pieces[str]:
        while True:
            yield from self._give(len(self._text))
            if not (yield from self.wait()):
                return ""


def trimmed(pieces: Pieces[T], space: str, make: Callable[[str], Event]) -> Steps[tuple[str, T]]:
    """Events of the pieces but for the white space at their end.

    Args:
        pieces: The text.
        space: White space that stands before it.
        make: Makes an event of a text.

    Returns:
        The white space at the end, and what the pieces' generator returns.
    """
    # (In parts: a weak model writes line breaks for as long as it may.)
    spaces = [space]
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            return "".join(spaces), end.value
        visible = piece.rstrip() if piece else ""
        if piece is None:
            yield None
        elif visible:
            yield make("".join((*spaces, visible)))
            spaces = [piece[len(visible) :]]
        else:
            spaces.append(piece)


def joined(pieces: Pieces[T]) -> Wait[tuple[str, T]]:
    """All that the pieces add up to, and what their generator returns."""
    parts: list[str] = []
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            return "".join(parts), end.value
        if piece is None:
            yield
        else:
            parts.append(piece)


def as_events(pieces: Pieces[T], make: Callable[[str], Event]) -> Steps[T]:
    """Each piece as the event that `make` makes of it."""
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            return end.value
        if piece is None:
            yield None
        elif piece:
            yield make(piece)


def partial_mark(text: str, start: int, end: int, marks: Sequence[str]) -> int:
    """Where the longest ending of text[start:end] that begins a mark starts, or `end`."""
    longest = max(len(mark) for mark in marks)
    for at in range(max(start, end - longest + 1), end):
        tail = text[at:end]
        if any(mark.startswith(tail) for mark in marks):
            return at
    return end


class Parser:
    """Runs a grammar over text that is fed to it."""

    def __init__(self, grammar: Callable[[Source], Steps[None]]):
        self._source = Source()
        self._steps = grammar(self._source)

    def feed(self, text: str) -> list[Event]:
        """Takes the next text; returns what it made certain."""
        self._source.push(text)
        return self._advance()

    def finish(self, *, is_cut: bool = False) -> list[Event]:
        """Ends the text; returns what was held back.

        Args:
            is_cut: The model had not finished; see Source.
        """
        self._source.is_ended = True
        self._source.is_cut = is_cut
        return self._advance()

    def _advance(self) -> list[Event]:
        events: list[Event] = []
        for event in self._steps:
            if event is None:
                break
            events.append(event)
        return events

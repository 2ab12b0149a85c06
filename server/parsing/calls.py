"""What every grammar needs to know about the calls of one answer."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.parsing.events import Content, ToolCallArguments, ToolCallStart
from server.parsing.source import Cut, NotACall, Pieces, Source, Steps, as_events, trimmed

# Reads what follows an opening mark.
Section = Callable[[Source, "Calls"], Steps[None]]

_ALPHANUMERIC = string.ascii_letters + string.digits


def call_id() -> str:
    """An id as OpenAI makes them."""
    return f"call_{secrets.token_hex(12)}"


def short_id() -> str:
    """An id as Mistral's templates demand them: nine letters or digits."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


@dataclass(slots=True)
class Calls:
    """The calls of one answer.

    Attributes:
        schemas: The parameters' JSON schema of each function that may be called, by name.
        make_id: Makes the id of a call that has none of its own.
        certain: Texts after which the model is held to a call: they are never plain text.
        num_started: Calls so far.
        was_cut: The answer was cut off inside one.
    """

    schemas: Mapping[str, Mapping[str, Any]]
    make_id: Callable[[], str] = call_id
    certain: Sequence[str] = ()
    num_started: int = 0
    was_cut: bool = False

    def start(self, source: Source, name: str, call_id: str | None = None) -> ToolCallStart:
        """The event that opens the next call; what was read for it is not given back any more."""
        source.commit()
        self.num_started += 1
        return ToolCallStart(self.num_started - 1, call_id or self.make_id(), name)

    def fragment(self, text: str) -> ToolCallArguments:
        """The next part of the open call's arguments."""
        return ToolCallArguments(self.num_started - 1, text)

    def arguments(self, pieces: Pieces[Any]) -> Steps[Any]:
        """The open call's arguments from pieces of their text."""
        return as_events(pieces, self.fragment)

    def is_certain(self, text: str) -> bool:
        """Whether a text that begins a call can be nothing else."""
        return any(mark in text for mark in self.certain)

    def properties(self, name: str) -> Mapping[str, Any]:
        """The schemas of a function's parameters, by name."""
        found = self.schemas.get(name, {}).get("properties")
        return found if isinstance(found, Mapping) else {}


def text_with_calls(
    source: Source,
    calls: Calls,
    opens: Sequence[str],
    section: Section,
    *,
    bare: Sequence[str] = (),
) -> Steps[None]:
    """The whole answer: text, and sections of calls in it.

    White space around a section belongs to its format and is left out. A section that turns out to
    be none is text, to the letter.

    Args:
        source: The answer.
        calls: Takes the calls.
        opens: Marks that begin a section.
        section: Reads a section, its opening mark included.
        bare: Beginnings of a section that count only where the answer begins.
    """
    space = yield from source.space()
    follows_call = False
    if bare and (yield from source.starts_with(bare)):
        follows_call = yield from _attempt(source, calls, section)
        if follows_call:
            space = yield from source.space()
    while True:
        marks = opens if source.may_rewind else ()
        space, mark = yield from trimmed(source.before(marks), space, Content)
        if not mark:
            if space and not follows_call:
                yield Content(space)
            return
        follows_call = yield from _attempt(source, calls, section)
        if follows_call:
            space = ""
        else:
            yield Content(space + source.take(len(mark)))
        space = yield from source.space()


def _attempt(source: Source, calls: Calls, section: Section) -> Steps[bool]:
    """Reads a section; if it is none, nothing is read. Returns whether there were calls."""
    num_before = calls.num_started
    source.keep()
    source.is_in_call = True
    try:
        yield from section(source, calls)
    except NotACall:
        source.rewind()
    except Cut:
        if calls.num_started == num_before:
            source.rewind()
        if calls.num_started > num_before or calls.is_certain(source.rest):
            calls.was_cut = True
            source.take(len(source.rest))
            source.commit()
            return True
    finally:
        source.is_in_call = False
    # A section without a single call in it is text, too.
    is_section = calls.num_started > num_before
    if not is_section:
        source.rewind()
    source.commit()
    return is_section

"""Every format, cut off at every place: no mark becomes text, and nothing is made up."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from server.answer_parser import AnswerParser, AnswerSyntax
from server.parsing.events import Message, fold
from server.tool_parsers import tool_formats
from tests.server.grammars.test_calls import EXAMPLES
from tests.server.tool_parsers.transcripts import TOOLS, TRANSCRIPTS

# Of several actions the last one is the call, so what a cut leaves may be another one.
LAST_COUNTS = "the last one counts"
# What models are trained to write is cut at every place, the other transcripts at every seventh.
TEXTS = [
    *(
        pytest.param(name, text, 1, id=f"{name}-example{i}")
        for name, texts in EXAMPLES.items()
        for i, text in enumerate(texts)
    ),
    *(
        pytest.param(name, case.text, 7, id=f"{name}-{case.title}")
        for name, cases in TRANSCRIPTS.items()
        for case in cases
        if case.calls and case.title != LAST_COUNTS
    ),
]


def read(name: str, pieces: Iterable[str], *, is_forced: bool, is_cut: bool) -> Message:
    tool_format = tool_formats()[name]
    certain = tuple(written.trigger for written in tool_format.written if written.trigger)
    syntax = AnswerSyntax(
        tool_format, None, TOOLS, is_forced=is_forced, certain=certain, max_equal=9
    )
    parser = AnswerParser(syntax)
    events = [event for piece in pieces for event in parser.feed(piece)]
    message = fold(events + parser.finish(is_cut=is_cut))
    for call in message.calls:
        call.id = ""
    return message


@pytest.mark.parametrize(("name", "text", "step"), TEXTS)
def test_a_cut_call_is_what_was_written_of_it_or_nothing(name: str, text: str, step: int) -> None:
    whole = read(name, [text], is_forced=False, is_cut=False)
    triggers = [written.trigger for written in tool_formats()[name].written if written.trigger]
    for end in range(len(text) % step, len(text) + 1, step):
        cut = read(name, [text[:end]], is_forced=False, is_cut=True)
        names = [call.name for call in cut.calls]
        assert names == [call.name for call in whole.calls][: len(names)], text[:end]
        for i, call in enumerate(cut.calls):
            arguments = whole.calls[i].arguments
            is_last = i == len(cut.calls) - 1
            assert call.arguments == arguments[: len(call.arguments)], text[:end]
            assert is_last or call.arguments == arguments, text[:end]
        for trigger in triggers:
            assert trigger not in cut.content or trigger in whole.content, text[:end]
        if end % 4 == 0:
            pieces = [text[at : min(at + 3, end)] for at in range(0, end, 3)]
            assert read(name, pieces, is_forced=False, is_cut=True) == cut, text[:end]
            forced = read(name, pieces, is_forced=True, is_cut=True)
            assert forced == Message(calls=cut.calls), text[:end]


@pytest.mark.parametrize("name", sorted(tool_formats()))
def test_text_that_is_cut_is_all_there(name: str) -> None:
    """Where nothing says that a call has begun, half a mark is text like any other."""
    for text in ("Just text.", "A < b, [1], {2} and \n", "  "):
        for end in range(len(text) + 1):
            cut = read(name, [text[:end]], is_forced=False, is_cut=True)
            assert cut.content == text[:end]
            assert not cut.calls

"""Answers end before a call too many, and with a call that was made before."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.parsing.call_limit import CallLimit
from server.parsing.events import (
    Call,
    Content,
    Event,
    Message,
    ToolCallArguments,
    ToolCallStart,
    fold,
)


def events_of(calls: list[tuple[str, str]], size: int = 1000) -> list[Event]:
    events: list[Event] = []
    for index, (name, text) in enumerate(calls):
        events.append(ToolCallStart(index, f"id{index}", name))
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        events += [ToolCallArguments(index, piece) for piece in pieces]
    return events


def passed(limit: CallLimit, events: list[Event], *, is_cut: bool = False) -> Message:
    taken = [each for event in events for each in limit.take([event])]
    return fold(taken + limit.finish(is_cut=is_cut))


OSLO, ROME = ("f", '{"city": "Oslo"}'), ("f", '{"city": "Rome"}')


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("calls", "num_passed"),
    [
        ([OSLO], None),
        ([OSLO, ROME], None),
        ([OSLO, OSLO], 1),
        ([OSLO, ROME, OSLO, ROME], 2),
        ([OSLO, ("f", '{ "city":\n"Oslo" }')], 1),  # white space between tokens says nothing
        ([OSLO, ("f", '{"city": "Oslo "}')], None),  # in a string it does
        ([OSLO, ("g", OSLO[1])], None),
        ([OSLO, ("f", '{"city": "Oslo", "days": 1}')], None),
        ([("f", "{}"), ("f", '{"city": "Oslo"}')], None),
        ([("f", "{}"), ("f", "{}")], 1),
        ([("f", r'{"a": "}\\\"{"}'), ("f", r'{"a": "}\\\"{"}')], 1),
    ],
)
def test_no_call_is_made_twice(
    calls: list[tuple[str, str]], num_passed: int | None, size: int
) -> None:
    limit = CallLimit()
    message = passed(limit, events_of(calls, size))
    expected = calls[:num_passed]
    assert [(call.name, call.arguments) for call in message.calls] == expected
    assert limit.is_over == (num_passed is not None)


def test_a_repeated_call_ends_the_answer_with_its_last_bracket() -> None:
    limit = CallLimit()
    limit.take(events_of([OSLO]))
    limit.take([ToolCallStart(1, "b", "f"), ToolCallArguments(1, '{"city": "Oslo"')])
    assert not limit.is_over
    assert limit.take([ToolCallArguments(1, "}")]) == []
    assert limit.is_over
    assert limit.take([Content("more")]) == []


def test_a_call_that_differs_streams_from_there_on() -> None:
    limit = CallLimit()
    limit.take(events_of([OSLO]))
    start = ToolCallStart(1, "b", "f")
    parts = [ToolCallArguments(1, text) for text in ('{"city": "O', "sa", "ka")]
    assert limit.take([start, parts[0]]) == []
    assert limit.take([parts[1]]) == [start, *parts[:2]]
    assert limit.take([parts[2]]) == [parts[2]]


@pytest.mark.parametrize(("most", "number"), [(1, 1), (2, 2), (None, 3)])
def test_the_most_calls(most: int | None, number: int) -> None:
    limit = CallLimit(max_calls=most)
    calls = [("f", json.dumps({"n": n})) for n in range(3)]
    message = passed(limit, [*events_of(calls), Content("text")])
    assert len(message.calls) == number
    assert limit.is_over == (number < 3)
    assert message.content == ("" if limit.is_over else "text")


def test_a_cut_call_that_repeats_one_so_far_is_left_out() -> None:
    begun = [*events_of([OSLO]), ToolCallStart(1, "b", "f"), ToolCallArguments(1, '{"ci')]
    assert passed(CallLimit(), begun, is_cut=True).calls == [Call("id0", *OSLO)]
    assert len(passed(CallLimit(), begun).calls) == 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from("fg"),
            st.dictionaries(st.sampled_from("ab"), st.sampled_from([1, "{", ' "x', [{}]])),
        ),
        max_size=9,
    ),
    st.integers(1, 3),
    st.integers(1, 9),
)
def test_as_a_plain_count(made: list[tuple[str, Any]], most: int, size: int) -> None:
    calls = [(name, json.dumps(arguments)) for name, arguments in made]
    expected = list(
        itertools.takewhile(lambda pair: calls[: pair[0]].count(pair[1]) < most, enumerate(calls))
    )
    message = passed(CallLimit(max_equal=most), events_of(calls, size))
    assert [(call.name, call.arguments) for call in message.calls] == [c for _, c in expected]

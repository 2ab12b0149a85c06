"""Reading and writing an answer costs as much for each piece at its end as at its beginning.

Costs are counted (`counted_work`), of a few pieces near the beginning, and after many others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtpjax.engine.request import GenerationRequest, RequestOutput, SamplingParams, TokenLogprob
from server.answer import AnswerFormat
from server.answer_parser import AnswerParser, AnswerSyntax
from server.chat_answer import ChatAnswer
from server.completion_answer import CompletionAnswer
from server.extras import Extras, WithExtras
from server.messages_answer import MessagesAnswer
from server.output import Delta, Usage
from server.parsing import source
from server.parsing.events import (
    Content,
    Event,
    Message,
    Reasoning,
    ToolCallArguments,
    ToolCallStart,
    fold,
)
from server.protocol.raw import RawForm
from server.protocol.responses import parse_responses
from server.raw_answer import RawAnswer
from server.reasoning_parsers import reasoning_formats
from server.reasoning_tokens import ReasoningCounter
from server.recorder import Recorder
from server.responses_answer import ResponsesAnswer
from server.token_text import TokenText
from server.tool_parsers import tool_formats
from tests.examples import num_examples
from tests.server.counted_work import Work
from tests.server.scripted_engine import ScriptedEngine, make_tokenizer
from tests.server.tool_parsers.transcripts import TOOLS, TRANSCRIPTS

SIZE = 8  # characters of a piece
FEW, MANY = 16, 1024  # pieces


@dataclass
class Answer:
    """An answer that goes on for as long as one likes.

    Attributes:
        step: Works on the next piece.
        end: Works on the end.
        period: After so many pieces they repeat.
    """

    step: Callable[[], Any]
    end: Callable[[], Any]
    period: int = 4


def costs(make: Callable[[], Answer], num: int) -> tuple[int, int]:
    """What pieces cost, and the end, after a number of pieces."""
    answer = make()
    for _ in range(num):
        answer.step()
    found = []
    for _ in range(3):  # (now and then a list grows)
        with Work() as work:
            for _ in range(max(4, answer.period)):
                answer.step()
                work.lap()
        found.append(work.done)
    with Work() as end:
        answer.end()
    return min(found), end.done


def check(make: Callable[[], Answer]) -> None:
    """A piece costs as much after many as after few, and the end as much for each of them."""
    few, few_end = costs(make, FEW)
    many, many_end = costs(make, MANY)
    assert many <= 1.3 * few + 500, f"a piece costs {many / few:.1f} times as much after many"
    factor = (MANY + 12) / (FEW + 12)
    assert many_end <= 1.5 * factor * few_end, "the end costs more for each piece"


# ---- reading


@pytest.fixture(autouse=True)
def little_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_MAX_REREAD", 100)
    monkeypatch.setattr(source, "_MAX_SPACE", 100)


def reading(syntax: AnswerSyntax, before: str, unit: str) -> Answer:
    period = min(32, len(unit))
    length = (MANY + 4 * max(4, period)) * SIZE
    text = before + unit * (length // len(unit) + 1)
    pieces = (text[at : at + SIZE] for at in range(0, len(text), SIZE))
    parser = AnswerParser(syntax)
    return Answer(lambda: parser.feed(next(pieces)), parser.finish, period)


COMMON = (
    *(' {"a": 1}', '{"a":', "[", "{", "}", "]", '"', "\\", "\n", "x", ",", "'", "<", "b=1, "),
    *('{"name": "now", "arguments": {', "now", "Action:"),
)


@cache
def parts_of(name: str) -> list[str]:
    """What answers in a format are made of."""
    marks = [mark for mark in tool_formats()[name].grammar.marks if mark]
    whole = [case.text for case in TRANSCRIPTS[name] if case.calls][:2]
    return [*marks, *marks, *whole, *COMMON]


@cache
def beginnings_of(name: str) -> list[str]:
    text = next(case.text for case in TRANSCRIPTS[name] if case.calls)
    return ["", *(text[:end] for end in range(3, len(text), 7))]


@pytest.mark.parametrize("name", sorted(tool_formats()))
@given(data=st.data())
@settings(max_examples=num_examples(3, 60))
def test_calls_are_read_in_linear_time(name: str, data: Any) -> None:
    before = data.draw(st.sampled_from(beginnings_of(name)))
    parts = st.lists(st.sampled_from(parts_of(name)), min_size=1, max_size=3)
    unit = "".join(data.draw(parts))
    syntax = AnswerSyntax(tool_formats()[name], None, TOOLS, max_equal=10**9)
    check(partial(reading, syntax, before, unit))


@pytest.mark.parametrize(
    ("name", "before", "unit"),
    [
        ("hermes", "", '<tool_call>{"a":{'),  # calls that begin again and again, and are none
        ("hermes", "", '<tool_call>{"arguments": {"a": 1}, '),
        ("hermes", '<tool_call>{"arguments": {"a": "', "x"),  # a call whose name comes last
        ("hermes", '<tool_call>{"name": "now", "arguments": ', "["),
        ("hermes", "hi", "\n"),
        (
            "qwen3_coder",
            "<tool_call>\n<function=get_weather>\n<parameter=city>\na</parameter>",
            " ",
        ),
        ("mistral", "[TOOL_CALLS]", " "),
        ("kimi_k2", "<|tool_calls_section_begin|><|tool_call_begin|>", "functions.now:0"),
        ("pythonic", "[now(", "a=[[1],'b'], "),
        ("react", "Action: now\nAction Input: ", '{"a": 1}\nAction: now\nAction Input: '),
    ],
)
def test_known_cases(name: str, before: str, unit: str) -> None:
    syntax = AnswerSyntax(tool_formats()[name], None, TOOLS, max_equal=10**9)
    check(partial(reading, syntax, before, unit))


@given(size=st.integers(1, 60), num=st.integers(1, 60))
def test_where_reading_gives_up_does_not_depend_on_pieces(size: int, num: int) -> None:
    syntax = AnswerSyntax(tool_formats()["hermes"], None, TOOLS)
    text = 'a <tool_call>{"a":{' * num + '"' + "}" * 2 * num + '<tool_call>{"name": "now"}'
    read: list[Message] = []
    for length in (size, len(text)):
        parser = AnswerParser(syntax)
        parts = [parser.feed(text[at : at + length]) for at in range(0, len(text), length)]
        read.append(fold([event for part in (*parts, parser.finish()) for event in part]))
        for call in read[-1].calls:
            call.id = ""
    assert read[0] == read[1]


@pytest.mark.parametrize("name", sorted(reasoning_formats()))
@pytest.mark.parametrize("is_open", [False, True])
def test_reasoning_is_read_in_linear_time(name: str, is_open: bool) -> None:
    grammar = reasoning_formats()[name].grammar
    syntax = AnswerSyntax(tool_formats()["hermes"], grammar, TOOLS, is_reasoning_open=is_open)
    for unit in ("\n", f"{grammar.opens}a{grammar.closes}", grammar.opens[:-1]):
        for before in ("", grammar.opens):
            check(partial(reading, syntax, before, unit))


@pytest.mark.parametrize("name", sorted(reasoning_formats()))
@pytest.mark.parametrize("is_open", [False, True])
def test_reasoning_is_counted_in_linear_time(name: str, is_open: bool) -> None:
    grammar = reasoning_formats()[name].grammar

    def counting(unit: str) -> Answer:
        counter = ReasoningCounter(grammar, lambda _: unit.encode(), is_open=is_open)
        return Answer(lambda: counter.see([0]), lambda: counter.num_tokens)

    for unit in ("x", "\n", grammar.opens, grammar.opens[:-1], grammar.closes):
        check(partial(counting, unit))


# ---- writing

TOKENIZER = make_tokenizer()
TOKENS = TokenText(TOKENIZER)
REQUEST = GenerationRequest("r", (7, 8), SamplingParams())
LOGPROBS = (TokenLogprob(7, -0.5, ((7, -0.5), (8, -1.0))),)
RAW = RawForm(
    n=1,
    is_batch=False,
    is_multi=False,
    is_stream=True,
    is_incremental=True,  # without it each event has all of the answer, as RTP-LLM's clients want
    wants_input_ids=False,
    wants_output_ids=False,
    has_aux_info=True,
)

Writer = Callable[[Usage, Recorder], AnswerFormat]
WRITERS: dict[str, Writer] = {
    "chat": lambda usage, _: ChatAnswer("m", TOKENS, with_usage=True, usage_so_far=usage),
    "completion": lambda usage, _: CompletionAnswer(
        "m", TOKENIZER, TOKENS, [REQUEST], with_usage=True, usage_so_far=usage
    ),
    "messages": lambda usage, _: MessagesAnswer("m", usage, is_cut=False, stop_sequences=()),
    "responses": lambda *_: ResponsesAnswer("m", TOKENS, parse_responses(b'{"input": "hi"}')),
    "raw": lambda _, recorder: RawAnswer(RAW, recorder),
    "extras": lambda usage, recorder: WithExtras(
        ChatAnswer("m", TOKENS, with_usage=True),
        Extras(token_ids=True, aux_info=True),
        recorder,
        TOKENS,
    ),
}


def events_of(kind: str, number: int) -> tuple[Event, ...]:
    """What one piece of an answer that is all of one kind turned out to be."""
    match kind:
        case "reasoning":
            return (Reasoning("abcd"),)
        case "arguments":
            begin = (ToolCallStart(0, "c", "f"), ToolCallArguments(0, '{"a": [1'))
            return (ToolCallArguments(0, ', "b"'),) if number else begin
        case "calls":
            return (ToolCallStart(number, "c", "f"), ToolCallArguments(number, "{}"))
        case "turns":
            return (Content("ab"), Reasoning("cd"))
        case _:
            return (Content("abcd"),)


def delta_of(kind: str, number: int) -> Delta:
    """A piece of an answer, as writers get it."""
    if kind == "plain":
        return Delta(0, "abcd", LOGPROBS)
    return Delta(0, "", LOGPROBS if kind == "text" else None, events=events_of(kind, number))


KINDS = ("text", "reasoning", "arguments", "calls", "turns")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "plain") for name in WRITERS),
        *((name, kind) for name in ("chat", "messages", "responses", "extras") for kind in KINDS),
    ],
)
def test_answers_are_written_in_linear_time(name: str, kind: str) -> None:
    def writing() -> Answer:
        usage, recorder = Usage(), Recorder(ScriptedEngine(), [REQUEST])
        usage.see(0, RequestOutput("r", "", ()))
        answer = WRITERS[name](usage, recorder)
        answer.first(0)
        numbers = itertools.count()

        def step() -> None:
            number = next(numbers)
            output = RequestOutput("r", "", (7,), num_output_tokens=number)
            usage.see(0, output)
            recorder.records[0].see(output)
            answer.delta(delta_of(kind, number))

        def end() -> None:
            answer.delta(Delta(0, "", finish_reason="stop", events=None if kind == "plain" else ()))
            answer.usage(usage)

        return Answer(step, end)

    check(writing)

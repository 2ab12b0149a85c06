"""Items of an answer: however it is cut, streamed or whole, both APIs tell of the same ones."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from rtpjax.engine.request import RequestOutput, TokenLogprob
from server.answer_items import Items, object_of
from server.answer_parser import AnswerSyntax, parsed
from server.messages_answer import MessagesAnswer
from server.output import Delta, Usage, join
from server.parsing.events import Content, Reasoning, ToolCallArguments, ToolCallStart
from server.protocol.responses import parse_responses
from server.reasoning_parsers import reasoning_formats
from server.responses_answer import ResponsesAnswer
from server.token_text import TokenText
from server.tool_parsers import tool_formats
from tests.examples import num_examples
from tests.server.reasoning_parsers.test_formats import CASES as REASONING
from tests.server.scripted_engine import make_tokenizer
from tests.server.tool_parsers.transcripts import TOOLS, TRANSCRIPTS

TOKENS = TokenText(make_tokenizer())
BODY = parse_responses(b'{"input": "hi"}')
# Name of the tool format, of the reasoning format or None, whether the prompt opened it; the text.
CASES = [
    *((name, None, False, case.text) for name, cases in TRANSCRIPTS.items() for case in cases),
    *(
        ("gpt_oss" if name == "harmony" else "hermes", name, is_open, text)
        for name, cases in REASONING.items()
        for text, is_open, *_ in cases
    ),
]


def syntax_of(tools: str, reasoning: str | None, is_open: bool) -> AnswerSyntax:
    return AnswerSyntax(
        tools=tool_formats()[tools],
        reasoning=None if reasoning is None else reasoning_formats()[reasoning].grammar,
        schemas=TOOLS,
        is_reasoning_open=is_open,
    )


def deltas(syntax: AnswerSyntax, pieces: Sequence[str], end: str) -> list[Delta]:
    """What the writers of answers get for a text in pieces, a token each."""

    async def written() -> AsyncIterator[Delta]:
        for number, piece in enumerate(pieces, 1):
            finish_reason = end if number == len(pieces) else None
            yield Delta(0, piece, finish_reason=finish_reason)

    async def read() -> list[Delta]:
        return [delta async for delta in parsed(written(), [syntax], set())]

    return asyncio.run(read())


def usage_of(num_tokens: int) -> Usage:
    output = RequestOutput("id", "", (), num_prompt_tokens=3, num_output_tokens=num_tokens)
    return Usage(last={0: output})


def responses_answer() -> ResponsesAnswer:
    return ResponsesAnswer("m", TOKENS, BODY)


def messages_answer(usage: Usage) -> MessagesAnswer:
    return MessagesAnswer("m", usage, is_cut=False, stop_sequences=())


def without_ids(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in items]


def events_of(stream: bytes) -> list[dict[str, Any]]:
    found = []
    for event in stream.decode().split("\n\n")[:-1]:
        name, data = event.split("\ndata: ")
        found.append(json.loads(data))
        assert name == f"event: {found[-1]['type']}"
    return found


def built(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items that the deltas of the responses API build; what ends them must agree."""
    items: list[dict[str, Any]] = []
    open_index: int | None = None
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
        kind = event["type"].removeprefix("response.")
        if kind in ("created", "in_progress", "completed", "incomplete"):
            continue
        assert event["output_index"] == (len(items) if open_index is None else open_index)
        if kind == "output_item.added":
            assert open_index is None
            open_index = len(items)
            items.append(event["item"])
            continue
        assert open_index is not None
        item = items[open_index]
        assert event.get("item_id", item["id"]) == item["id"]
        match kind:
            case "content_part.added":
                assert event["content_index"] == len(item["content"]) == 0
                item["content"].append(event["part"])
            case "output_text.delta" | "reasoning_text.delta":
                item["content"][event["content_index"]]["text"] += event["delta"]
            case "function_call_arguments.delta":
                item["arguments"] += event["delta"]
            case "function_call_arguments.done":
                assert (event["name"], event["arguments"]) == (item["name"], item["arguments"])
            case "output_text.done" | "reasoning_text.done":
                assert event["text"] == item["content"][0]["text"]
            case "content_part.done":
                assert event["part"] == item["content"][0]
            case "output_item.done":
                item["status"] = event["item"]["status"]
                assert event["item"] == item
                open_index = None
            case _:
                raise AssertionError(kind)
    assert open_index is None
    return items


def message_of(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the events of the messages API build; clients parse arguments with each part."""
    first, *others = events
    assert first["type"] == "message_start"
    message = first["message"]
    blocks, arguments, is_open = message["content"], "", False
    for event in others:
        match event["type"]:
            case "content_block_start":
                assert not is_open
                assert event["index"] == len(blocks)
                blocks.append(event["content_block"])
                arguments, is_open = "", True
            case "content_block_delta":
                assert is_open
                assert event["index"] == len(blocks) - 1
                kind, (field, text) = event["delta"].pop("type"), *event["delta"].items()
                assert kind == {"partial_json": "input_json"}.get(field, field) + "_delta"
                if field == "partial_json":
                    arguments += text
                    blocks[-1]["input"] = from_json(arguments, allow_partial=True)
                else:
                    blocks[-1][field] += text
            case "content_block_stop":
                assert event["index"] == len(blocks) - 1
                is_open = False
            case "message_delta":
                message |= event["delta"] | {"usage": event["usage"]}
    assert not is_open
    assert events[-1]["type"] == "message_stop"
    return message


@given(data=st.data())
@settings(max_examples=num_examples(300))
def test_streams_build_the_whole_answers(data: st.DataObject) -> None:
    *how, text = data.draw(st.sampled_from(CASES))
    end = data.draw(st.sampled_from(["stop", "length"]))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    syntax = syntax_of(*how)
    streamed = deltas(syntax, pieces, end)
    choices = join(deltas(syntax, [text], end))

    whole = json.loads(responses_answer().whole(choices, usage_of(1)))
    answer = responses_answer()
    stream = (answer.first(0) or b"") + b"".join(map(answer.delta, streamed))
    events = events_of(stream + answer.usage(usage_of(len(pieces))))
    items = built(events)
    assert without_ids(items) == without_ids(whole["output"])
    assert events[-1]["response"]["output"] == items
    assert events[-1]["type"] == f"response.{whole['status']}"
    assert [item["status"] for item in items[:-1]] == ["completed"] * (len(items) - 1)
    assert items[-1]["status"] in (whole["status"], "completed")

    usage = usage_of(len(pieces))
    whole = messages_answer(usage).whole(choices, usage)
    answer = messages_answer(usage)
    stream = (answer.first(0) or b"") + b"".join(map(answer.delta, streamed))
    message = message_of(events_of(stream + answer.usage(usage)))
    message["content"], whole["content"] = (without_ids(m["content"]) for m in (message, whole))
    assert {**message, "id": "", "usage": {}} == {**whole, "id": "", "usage": {}}


@pytest.mark.parametrize(("tools", "reasoning", "is_open", "text"), CASES)
def test_nothing_of_a_transcript_is_lost(
    tools: str, reasoning: str | None, is_open: bool, text: str
) -> None:
    """The items say what the chat API's message says."""
    [choice] = join(deltas(syntax_of(tools, reasoning, is_open), list(text) or [""], "stop"))
    assert choice.message is not None
    items = Items()
    items.take_whole(choice)
    by_kind = {
        kind: [item for item in items.items if item.kind == kind]
        for kind in ("text", "reasoning", "call")
    }
    assert "".join(item.text for item in by_kind["text"]) == choice.message.content
    assert "".join(item.text for item in by_kind["reasoning"]) == choice.message.reasoning
    assert [(c.id, c.name, c.arguments) for c in choice.message.calls] == [
        (item.call_id, item.name, item.text) for item in by_kind["call"]
    ]


def test_the_order_is_the_models() -> None:
    events = (
        Reasoning("a"), Content("b"), Content("c"), ToolCallStart(0, "i", "f"),
        ToolCallArguments(0, "{"), ToolCallArguments(0, "}"), Reasoning("d"),
        ToolCallStart(1, "j", "g"), Content("e"),
    )  # fmt: skip
    for size in (1, 2, 4, len(events)):
        items = Items()
        changes = [
            (change.item.index, change.step)
            for at in range(0, len(events), size)
            for change in items.take(Delta(0, "", events=events[at : at + size]))
        ]
        list(items.take(Delta(0, "", finish_reason="stop")))
        found = [(item.kind, item.text) for item in items.items]
        assert found == [
            ("reasoning", "a"), ("text", "bc"), ("call", "{}"), ("reasoning", "d"), ("call", ""),
            ("text", "e"),
        ]  # fmt: skip
        opened = [index for index, step in changes if step == "open"]
        closed = [index for index, step in changes if step == "close"]
        assert (opened, closed) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4])


def test_an_item_shows_what_was_said_so_far() -> None:
    seen = [
        (change.step, change.item.text)
        for change in Items().take(Delta(0, "ab", finish_reason="stop"))
    ]
    assert seen == [("open", ""), ("add", "ab"), ("close", "ab")]


def test_an_answer_without_anything_is_an_empty_text() -> None:
    items = Items()
    assert len(list(items.take(Delta(0, "", events=(), finish_reason="length")))) == 2
    [item] = items.items
    assert (item.kind, item.text, item.is_cut) == ("text", "", True)


def test_logprobs_belong_to_texts() -> None:
    a, b, c, d, e = (TokenLogprob(i, -float(i), ()) for i in range(5))
    items = Items()
    for delta in (
        Delta(0, "", (a,), events=(Reasoning("r"),)),
        Delta(0, "", (b,), events=()),  # held back
        Delta(0, "", (c,), events=(Content("t"),)),
        Delta(0, "", (d,), events=(ToolCallStart(0, "i", "f"),)),
        Delta(0, "", (e,), events=(), finish_reason="stop"),
    ):
        list(items.take(delta))
    assert [item.logprobs for item in items.items] == [[], [b, c], []]


BROKEN = [
    ('{"a": "x\ny"}', '{"a": "x'),
    ("[1, 2]", ""),
    ("Paris", ""),
    ("{city: 1}", "{"),
    ('{"a": NaN}', '{"a": '),
]


@pytest.mark.parametrize(("text", "good"), BROKEN)
def test_what_is_no_object_is_text_in_the_messages_api(text: str, good: str) -> None:
    """Its clients fail on a call whose arguments are not the beginning of an object."""
    start = Delta(0, "", events=(ToolCallStart(0, "i", "f"),))
    for size in (1, 3, len(text)):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        items = Items(has_object_arguments=True)
        parts = [Delta(0, "", events=(ToolCallArguments(0, piece),)) for piece in pieces]
        for delta in (start, *parts):
            list(items.take(delta))
        call, rest = items.items
        assert (call.text, rest.kind, rest.text) == (good, "text", text.removeprefix(good))


def test_a_number_beyond_all_is_the_largest() -> None:
    value = object_of('{"a": [1e999, {"b": -1e999}]}')
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["a"][0] == -value["a"][1]["b"] > 1e308

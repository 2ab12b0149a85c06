"""Forced calls on every route: how many there are, and what is left of one that is cut off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from server import limits
from tests.server.live_server import LiveServer
from tests.server.speaking_engine import TOOL_TEMPLATE, SpeakingEngine

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
Way = Literal["named", "required", "auto"]


def call_text(name: str) -> str:
    return f'<tool_call>\n{{"name": "City", "arguments": {{"name": "{name}"}}}}\n</tool_call>'


PARIS = call_text("Paris")
MANY = "\n".join(call_text(f"City {n}") for n in range(40))


@dataclass(frozen=True)
class Answer:
    """What any of the APIs answered: arguments of its calls, its text, and why it ended.

    The text is None where there is none: a block or item without any is one.
    """

    arguments: list[str]
    text: str | None
    end: str
    num_tokens: int


def chat(server: LiveServer, way: Way, **fields: Any) -> Answer:
    choice: Any = {"type": "function", "function": {"name": "City"}} if way == "named" else way
    function = {"name": "City", "parameters": SCHEMA}
    body = {"messages": [{"role": "user", "content": "hi"}], "tool_choice": choice}
    body |= {"tools": [{"type": "function", "function": function}], **fields}
    response = server.client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    if fields.get("stream"):
        return chat_stream(response.text)
    [made] = response.json()["choices"]
    calls = made["message"].get("tool_calls", [])
    arguments = [call["function"]["arguments"] for call in calls]
    used = response.json()["usage"]["completion_tokens"]
    return Answer(arguments, made["message"]["content"], made["finish_reason"], used)


def chat_stream(text: str) -> Answer:
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    arguments: dict[int, str] = {}
    content = ""
    for chunk in chunks:
        for choice in chunk["choices"]:
            content += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls", []):
                before = arguments.get(call["index"], "")
                arguments[call["index"]] = before + call["function"]["arguments"]
    [end] = [c["finish_reason"] for x in chunks for c in x["choices"] if c["finish_reason"]]
    used = chunks[-1]["usage"]["completion_tokens"] if chunks[-1].get("usage") else 0
    return Answer([arguments[i] for i in sorted(arguments)], content or None, end, used)


def streamed_chat(server: LiveServer, way: Way, **fields: Any) -> Answer:
    return chat(server, way, stream=True, stream_options={"include_usage": True}, **fields)


def messages(server: LiveServer, way: Way, **fields: Any) -> Answer:
    choice = {"named": {"type": "tool", "name": "City"}, "required": {"type": "any"}}
    if "parallel_tool_calls" in fields:
        is_single = not fields.pop("parallel_tool_calls")
        choice = {way: choice[way] | {"disable_parallel_tool_use": is_single}}
    body = {
        "max_tokens": 4000,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": "City", "input_schema": SCHEMA}],
        "tool_choice": choice.get(way, {"type": "auto"}),
    }
    response = server.client.post("/v1/messages", json=body | fields)
    assert response.status_code == 200, response.text
    made = response.json()
    calls = [json.dumps(b["input"]) for b in made["content"] if b["type"] == "tool_use"]
    texts = [b["text"] for b in made["content"] if b["type"] == "text"]
    ends = {"tool_use": "tool_calls", "max_tokens": "length", "end_turn": "stop"}
    used = made["usage"]["output_tokens"]
    return Answer(calls, "".join(texts) if texts else None, ends[made["stop_reason"]], used)


def responses(server: LiveServer, way: Way, **fields: Any) -> Answer:
    choice: Any = {"type": "function", "name": "City"} if way == "named" else way
    body = {
        "input": "hi",
        "tools": [{"type": "function", "name": "City", "parameters": SCHEMA}],
        "tool_choice": choice,
    }
    response = server.client.post("/v1/responses", json=body | fields)
    assert response.status_code == 200, response.text
    made = response.json()
    calls = [item["arguments"] for item in made["output"] if item["type"] == "function_call"]
    parts = [p["text"] for i in made["output"] if i["type"] == "message" for p in i["content"]]
    is_cut = made["status"] == "incomplete"
    end = "length" if is_cut else "tool_calls" if calls else "stop"
    return Answer(calls, "".join(parts) if parts else None, end, made["usage"]["output_tokens"])


ROUTES = [chat, streamed_chat, messages, responses]


@pytest.fixture(scope="module")
def engine() -> SpeakingEngine:
    return SpeakingEngine(template=TOOL_TEMPLATE)


@pytest.fixture(scope="module")
def server(engine: SpeakingEngine) -> Iterator[LiveServer]:
    with LiveServer(engine) as running:
        yield running


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("way", "fields", "text", "number"),
    [
        ("named", {}, MANY, 1),
        ("named", {"parallel_tool_calls": True}, MANY, 1),
        ("required", {}, MANY, limits.MAX_FORCED_CALLS),
        ("required", {"parallel_tool_calls": False}, MANY, 1),
        ("required", {"parallel_tool_calls": True}, MANY, 40),
        ("required", {}, f"{PARIS}\n" * 20, 1),
        ("required", {"parallel_tool_calls": True}, f"{PARIS}\n" * 20, 1),
        ("required", {}, f"{PARIS}\n{call_text('Rome')}\n" * 20, 2),
        ("auto", {}, f"{PARIS}\n" * 20, limits.MAX_EQUAL_CALLS),
        ("auto", {}, MANY, 40),
    ],
)
def test_forced_calls_end(
    server: LiveServer, engine: SpeakingEngine, route: Any, way: Way, fields: Any, text: str,
    number: int,
) -> None:  # fmt: skip
    engine.answer, engine.size, engine.end = text, 5, "length"
    aborted = len(engine.aborted)
    answer = route(server, way, **fields)
    assert len(answer.arguments) == number
    assert all(set(json.loads(arguments)) == {"name"} for arguments in answer.arguments)
    assert answer.text is None
    if number < 40:
        assert answer.end == "tool_calls"
        assert 0 < answer.num_tokens < len(text)
        assert len(engine.aborted) == aborted + 1
        assert not engine.running


def test_one_choice_ends_and_the_others_go_on(server: LiveServer, engine: SpeakingEngine) -> None:
    engine.answer, engine.size, engine.end = f"{PARIS}\n{PARIS}", 5, "stop"
    fields = {"tools": [{"type": "function", "function": {"name": "City", "parameters": SCHEMA}}]}
    body = {"messages": [{"role": "user", "content": "hi"}], "tool_choice": "required", "n": 3}
    made = server.client.post("/v1/chat/completions", json=body | fields).json()
    assert [c["finish_reason"] for c in made["choices"]] == ["tool_calls"] * 3
    assert [len(c["message"]["tool_calls"]) for c in made["choices"]] == [1] * 3


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("way", ["named", "required"])
def test_a_cut_answer_has_no_text(
    server: LiveServer, engine: SpeakingEngine, route: Any, way: Way
) -> None:
    engine.size, engine.end = 5, "length"
    whole = f"{PARIS}\n{call_text('Rome')}"
    for end in (1, 3, 12, 20, 30, 40, 60, len(PARIS) + 1, len(PARIS) + 20, len(whole)):
        engine.answer = whole[:end]
        answer = route(server, way)
        assert answer.text is None
        if answer.end == "tool_calls":  # the second call of a named function was one too many
            assert way == "named" and end > len(PARIS)
        else:
            assert answer.end == "length"
        for arguments, name in zip(answer.arguments, ("Paris", "Rome"), strict=False):
            whole_call = json.dumps({"name": name})
            if route is messages:  # gives what there is of the object
                assert json.loads(arguments).get("name", "") in name
            else:
                assert arguments and whole_call.startswith(arguments)


def test_a_stop_string_in_a_call_makes_nothing_up(
    server: LiveServer, engine: SpeakingEngine
) -> None:
    engine.answer, engine.size, engine.end = PARIS[: PARIS.index("Paris") + 2], 5, "stop"
    engine.stop_with = "ris"
    answer = chat(server, "required", stop=["ris"])
    engine.stop_with = None
    assert answer.arguments == ['{"name": "Pa']
    assert answer.end == "stop"

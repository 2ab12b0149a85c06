"""Calls, reasoning and grammars on the routes beside the chat route."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.live_server import LiveServer
from tests.server.speaking_engine import TOOL_TEMPLATE, SpeakingEngine
from tests.server.test_function_calls import ASK, HERMES, TOOLS

FORMAT = {"type": "json_schema", "schema": {"type": "object"}, "name": "x"}


@pytest.fixture(scope="module")
def engine() -> SpeakingEngine:
    return SpeakingEngine(template=TOOL_TEMPLATE)


@pytest.fixture(scope="module")
def server(engine: SpeakingEngine) -> Iterator[LiveServer]:
    config = {"allow_user_template": True, "reasoning_parser": "think"}
    with LiveServer(engine, **config) as running:
        yield running


def post(server: LiveServer, path: str, **fields: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=fields, timeout=30)


def test_batch_reads_calls(server: LiveServer, engine: SpeakingEngine) -> None:
    engine.answer = "Hm.</think>" + HERMES
    chat = {"messages": [ASK], "tools": TOOLS, "return_token_ids": True, "aux_info": True}
    body = post(server, "/v1/batch/chat/completions", requests=[chat, chat]).json()
    for response in body["responses"]:
        [choice] = response["choices"]
        assert [c["type"] for c in choice["message"]["tool_calls"]] == ["function", "function"]
        assert choice["finish_reason"] == "tool_calls"
        assert len(choice["token_ids"]) == response["aux_info"]["output_len"] > 2


def test_extras_of_streamed_calls(server: LiveServer, engine: SpeakingEngine) -> None:
    engine.answer = "Hm.</think>" + HERMES
    response = post(
        server, "/v1/chat/completions",
        messages=[ASK], tools=TOOLS, return_token_ids=True, stream=True,
    )  # fmt: skip
    lines = [line[6:] for line in response.text.split("\n\n") if line.startswith("data: {")]
    choices = [json.loads(line)["choices"][0] for line in lines]
    num_tokens = len(engine.answer.encode())  # one per byte
    assert sum(len(c.get("token_ids") or ()) for c in choices) == num_tokens
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_user_template_decides_how_tools_are_offered(
    server: LiveServer, engine: SpeakingEngine
) -> None:
    engine.answer = "ok"
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}mine:"
    fields = {"messages": [ASK], "tools": TOOLS, "user_template": template}
    assert post(server, "/v1/chat/completions", **fields).status_code == 200
    assert engine.prompt().endswith("mine:")
    assert "get_current_weather" in engine.prompt()  # in a system text: it knows no tools


def test_grammar_of_a_response(server: LiveServer, engine: SpeakingEngine) -> None:
    engine.answer = "{}"
    assert post(server, "/v1/responses", input="a", text={"format": FORMAT}).status_code == 200
    grammar = engine.seen[-1].grammar
    assert grammar is not None and (grammar.kind, grammar.param) == ("json_schema", "text.format")


def test_grammar_of_a_batch(server: LiveServer, engine: SpeakingEngine) -> None:
    engine.answer = "{}"
    chat = {"messages": [ASK], "response_format": {"type": "json_object"}}
    assert post(server, "/v1/batch/chat/completions", requests=[chat]).status_code == 200
    assert engine.seen[-1].grammar is not None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": TOOLS}, "tools"),
    ],
)
def test_beams_follow_no_grammar(server: LiveServer, fields: dict[str, Any], param: str) -> None:
    response = post(server, "/v1/chat/completions", messages=[ASK], num_beams=2, **fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param

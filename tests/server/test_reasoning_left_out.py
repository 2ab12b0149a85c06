"""A caller who does not want to see the reasoning gets the rest of the answer, and its count."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.live_server import LiveServer
from tests.server.speaking_engine import TOOL_TEMPLATE, SpeakingEngine

USER = {"role": "user", "content": "hi"}
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


@pytest.fixture(scope="module")
def engine() -> SpeakingEngine:
    made = SpeakingEngine(template=TOOL_TEMPLATE + "{# <think></think> #}")
    made.answer = f"<think>\nsecret\n</think>\n\nHello{CALL}"
    return made


@pytest.fixture(scope="module")
def server(engine: SpeakingEngine) -> Iterator[LiveServer]:
    with LiveServer(engine) as running:
        yield running


def tools(path: str) -> list[dict[str, Any]]:
    if path == MESSAGES:
        return [{"name": "f", "input_schema": {"type": "object"}}]
    function = {"name": "f", "parameters": {"type": "object"}}
    return [{"type": "function", **(function if path == RESPONSES else {"function": function})}]


def post(server: LiveServer, path: str, **fields: Any) -> Any:
    body = {"input": "hi"} if path == RESPONSES else {"messages": [USER], "max_tokens": 500}
    answer = server.client.post(path, json=body | {"tools": tools(path)} | fields)
    assert answer.status_code == 200, answer.text
    return answer.text if fields.get("stream") else answer.json()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"include_reasoning": False}),
        (CHAT, {"reasoning": {"exclude": True}}),
        (CHAT, {"include_reasoning": False, "tools": []}),
        (RESPONSES, {"include_reasoning": False}),
        (MESSAGES, {"thinking": {"type": "adaptive", "display": "omitted"}}),
    ],
)
def test_it_is_left_out(server: LiveServer, path: str, fields: dict[str, Any]) -> None:
    shown = post(server, path, tools=fields.get("tools", tools(path)))
    assert "secret" in json.dumps(shown)
    hidden = post(server, path, **fields)
    assert "secret" not in json.dumps(hidden)
    assert "Hello" in json.dumps(hidden)
    assert hidden["usage"] == shown["usage"]
    stream = post(server, path, **fields, stream=True)
    texts = [line for line in stream.splitlines() if line.startswith("data: {")]
    assert not any(piece in text for text in texts for piece in ("secre", "cret", "reasoning_text"))


def test_blocks_of_thinking_stay(server: LiveServer) -> None:
    """... as Anthropic's do, whose text is empty: clients send them back."""
    fields = {"thinking": {"type": "adaptive", "display": "omitted"}}
    content = post(server, MESSAGES, **fields)["content"]
    assert [block["type"] for block in content] == ["thinking", "text", "tool_use"]
    assert content[0]["thinking"] == ""
    events = post(server, MESSAGES, **fields, stream=True)
    assert '"type":"thinking"' in events
    assert "signature_delta" in events
    assert "thinking_delta" not in events
    shown = post(server, MESSAGES, thinking={"type": "adaptive", "display": "summarized"})
    assert shown["content"][0]["thinking"] == "secret"


def test_what_is_wanted_is_there(server: LiveServer) -> None:
    for fields in ({"include_reasoning": True}, {"reasoning": {"exclude": False}}):
        [choice] = post(server, CHAT, **fields)["choices"]
        assert choice["message"]["reasoning_content"] == "secret"


EXAMPLES = [{"a": 1}, {"a": [2, "é"]}]


def test_examples_of_a_tools_input_are_shown_to_the_model(
    server: LiveServer, engine: SpeakingEngine
) -> None:
    tool = {"name": "f", "input_schema": {"type": "object"}, "input_examples": EXAMPLES}
    for described, begin in (({"description": "does it"}, "does it\\n"), ({}, "")):
        post(server, MESSAGES, tools=[tool | described])
        shown = 'Examples of its input:\\n{\\"a\\": 1}\\n{\\"a\\": [2, \\"é\\"]}'
        assert f'"description": "{begin}{shown}"' in engine.prompt()
    post(server, MESSAGES, tools=[tool | {"input_examples": []}])
    assert "Examples" not in engine.prompt()


@pytest.mark.parametrize(
    ("examples", "param"),
    [
        ("x", "tools[0].input_examples"),
        ([{}, 1], "tools[0].input_examples[1]"),
        ([{}] * 65, "tools[0].input_examples"),
    ],
)
def test_examples_that_are_none(server: LiveServer, examples: Any, param: str) -> None:
    tool = {"name": "f", "input_schema": {"type": "object"}, "input_examples": examples}
    body = {"messages": [USER], "max_tokens": 5, "tools": [tool]}
    refused = server.client.post(MESSAGES, json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith(f"{param}: ")

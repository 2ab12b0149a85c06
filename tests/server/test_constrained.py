"""Grammars, limits on reasoning and efforts, from the routes to the engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from rtpjax.engine.request import GenerationRequest, ReasoningLimit
from tests.server.live_server import LiveServer
from tests.server.speaking_engine import TOOL_TEMPLATE, SpeakingEngine
from tests.server.test_function_calls import ASK, TOOLS

OBJECT = {"type": "json_object"}
EFFORTS = "{{ enable_thinking }} {{ reasoning_effort }}{{ messages[0].content }}<think>"


@pytest.fixture(scope="module")
def engine() -> SpeakingEngine:
    return SpeakingEngine("ok", template=TOOL_TEMPLATE)


@pytest.fixture(scope="module")
def server(engine: SpeakingEngine) -> Iterator[LiveServer]:
    config = {"allow_user_template": True, "reasoning_parser": "think"}
    with LiveServer(engine, **config) as running:
        yield running


@pytest.fixture(scope="module")
def plain_server() -> Iterator[LiveServer]:
    """A model that does not reason."""
    with LiveServer(SpeakingEngine("ok")) as running:
        yield running


def seen(server: LiveServer, engine: SpeakingEngine, path: str, **fields: Any) -> GenerationRequest:
    response = httpx.post(server.url + path, json=fields, timeout=30)
    assert response.status_code == 200, response.text
    return engine.seen[-1]


def refused(server: LiveServer, path: str, **fields: Any) -> str:
    response = httpx.post(server.url + path, json=fields, timeout=30)
    assert response.status_code == 400, response.text
    return response.json()["error"]["param"]


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (TEXT, {"prompt": "a", "response_format": OBJECT}, "response_format"),
        (TEXT, {"prompt": "a", "guided_choice": ["x"]}, "guided_choice"),
        (TEXT, {"prompt": "a", "extra_configs": {"response_format": OBJECT}}, "response_format"),
        ("/", {"prompt": "a", "generate_config": {"response_format": OBJECT}}, "response_format"),
        (CHAT, {"messages": [ASK], "guided_regex": "a"}, "guided_regex"),
        (CHAT, {"messages": [ASK], "structured_outputs": {"json": {}}}, "structured_outputs.json"),
    ],
)
def test_grammars_reach_the_engine(
    server: LiveServer, engine: SpeakingEngine, path: str, fields: dict[str, Any], param: str
) -> None:
    grammar = seen(server, engine, path, **fields).grammar
    assert grammar is not None and grammar.param == param


@pytest.mark.parametrize(
    ("path", "fields", "is_open"),
    [
        (TEXT, {"prompt": ["a", "b <think>"], "thinking_budget": 7}, True),
        (TEXT, {"prompt": "a", "thinking_budget": 7}, False),
        (TEXT, {"prompt": "a", "extra_configs": {"max_thinking_tokens": 7}}, False),
        ("/", {"prompt": "a<think>", "generate_config": {"max_thinking_tokens": 7}}, True),
        ("/", {"prompt": "a<think>", "thinking_budget": 7}, True),
        (CHAT, {"messages": [ASK], "thinking_budget": 7, "n": 2}, False),
        (CHAT, {"messages": [ASK], "thinking_budget": 7, "user_template": EFFORTS}, True),
    ],
)
def test_budgets_reach_the_engine(
    server: LiveServer, engine: SpeakingEngine, path: str, fields: dict[str, Any], is_open: bool
) -> None:
    found = seen(server, engine, path, **fields).reasoning_limit
    assert found == ReasoningLimit(7, "<think>", "</think>", is_open=is_open)


def test_a_model_that_does_not_reason(plain_server: LiveServer) -> None:
    for path, fields in ((CHAT, {"messages": [ASK]}), (TEXT, {"prompt": "a"})):
        for budget in (0, 5):  # it keeps to any
            body = {**fields, "thinking_budget": budget}
            response = httpx.post(plain_server.url + path, json=body, timeout=30)
            assert response.status_code == 200, response.text


def test_refuses(server: LiveServer) -> None:
    chat = {"messages": [ASK], "num_beams": 2}
    assert refused(server, CHAT, **chat, thinking_budget=5) == "thinking_budget"
    assert refused(server, CHAT, **chat, guided_regex="a") == "guided_regex"
    assert refused(server, TEXT, prompt="a", num_beams=2, guided_regex="a") == "guided_regex"
    assert refused(server, TEXT, prompt="a", thinking_budget=-1) == "thinking_budget"
    tags = {"type": "structural_tag", "triggers": ["<"], "structures": [{"begin": "<"}]}
    fields: dict[str, Any] = {"messages": [ASK], "tools": TOOLS, "response_format": tags}
    assert refused(server, CHAT, **fields) == "response_format"


def test_efforts(server: LiveServer, engine: SpeakingEngine, plain_server: LiveServer) -> None:
    def prompt(**fields: Any) -> str:
        seen(server, engine, CHAT, messages=[ASK], user_template=EFFORTS, **fields)
        return engine.prompt()

    assert prompt(reasoning_effort="none").startswith("False ")
    assert prompt(reasoning_effort="high").startswith(" high")
    for effort, shown in {"minimal": "low", "xhigh": "high", "max": "high"}.items():
        assert prompt(reasoning_effort=effort).startswith(f" {shown}")
    # The model's own template has neither variable: a level is a hint, and none is no token.
    for effort, limit in {"high": None, "none": 0}.items():
        found = seen(server, engine, CHAT, messages=[ASK], reasoning_effort=effort).reasoning_limit
        assert (found and found.max_tokens) == limit
    both = {"messages": [ASK], "reasoning_effort": "none", "enable_thinking": True}
    assert refused(server, CHAT, **both) == "reasoning_effort"
    assert refused(server, CHAT, messages=[ASK], reasoning_effort="much") == "reasoning_effort"
    assert plain_server.chat(reasoning_effort="none").status_code == 200


@pytest.mark.parametrize(
    ("parser", "begins"),
    [
        ("hermes", '<tool_call>\\n{\\"name\\": \\"get_current_weather\\"'),
        ("llama3_json", '{\\"name\\": \\"get_current_weather\\", \\"parameters\\"'),
        ("qwen3_coder", "<function=get_current_weather>"),
        ("mistral", "[TOOL_CALLS]"),
    ],
)
def test_forced_calls_are_in_the_models_format(parser: str, begins: str) -> None:
    engine = SpeakingEngine("ok", template=TOOL_TEMPLATE)
    with LiveServer(engine, tool_call_parser=parser) as server:
        grammar = seen(
            server, engine, CHAT, messages=[ASK], tools=TOOLS, tool_choice="required"
        ).grammar
    assert grammar is not None
    shown = grammar.text + "".join(f'"{mark}"' for mark in grammar.marks)
    assert all(part in shown for part in begins.split("<tool_call>"))


def test_what_a_format_cannot_write_is_forced_in_ours() -> None:
    engine = SpeakingEngine("ok", template=TOOL_TEMPLATE)
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": "email"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    engine.answer = '<tool_call>\n{"name": "f", "arguments": {"a": "x@y.z"}}\n</tool_call>'
    with LiveServer(engine, tool_call_parser="qwen3_coder") as server:
        response = server.chat(tools=tools, tool_choice="required").json()
    [call] = response["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"a": "x@y.z"}'

"""Calls and thinking in Anthropic's messages API, by its own client and over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rtpjax.engine.request import Grammar
from tests.server.live_server import LiveServer
from tests.server.routes.test_responses_calls import TEMPLATE
from tests.server.scripted_engine import ScriptedEngine
from tests.server.speaking_engine import SpeakingEngine
from tests.server.test_function_calls import ARGUMENTS, HERMES, WEATHER

anthropic = pytest.importorskip("anthropic")

SCHEMA = WEATHER["parameters"]
TOOL = {k: WEATHER[k] for k in ("name", "description")} | {"input_schema": SCHEMA}
OTHER = {"name": "now", "input_schema": {"type": "object"}, "type": "custom"}
CHAT_TOOLS = [
    {"type": "function", "function": WEATHER},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
]
USER = {"role": "user", "content": "What's the weather like?"}
USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "22"}
STRAY = RESULT | {"tool_use_id": "x"}
ASKED = {"model": "x", "max_tokens": 500, "messages": [USER]}


def turn(role: str, *blocks: Any) -> dict[str, Any]:
    return {"role": role, "content": list(blocks)}


@pytest.fixture(scope="module")
def engine() -> SpeakingEngine:
    template = "{{ enable_thinking }}" + TEMPLATE
    return SpeakingEngine(template=template)


@pytest.fixture(scope="module")
def server(engine: SpeakingEngine) -> Iterator[LiveServer]:
    with LiveServer(engine, reasoning_parser="think") as running:
        yield running


@pytest.fixture
def client(server: LiveServer, engine: SpeakingEngine) -> Iterator[Any]:
    engine.answer, engine.size, engine.end = f"<think>Hm.\n</think>\n\n{HERMES}", 5, "stop"
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        yield client


def test_a_whole_answer_with_calls(client: Any) -> None:
    answer = client.messages.create(**ASKED, tools=[TOOL, OTHER])
    thinking, text, first, second = answer.content
    assert (thinking.type, thinking.thinking, thinking.signature) == ("thinking", "Hm.", "")
    assert text.text == "I look."
    assert (first.type, first.name) == ("tool_use", "get_current_weather")
    assert (first.input, second.input) == ({"location": '杭州 "Yuhang"'}, {})
    assert first.id != second.id
    assert (answer.stop_reason, answer.stop_sequence) == ("tool_use", None)
    assert 1 <= answer.usage.output_tokens_details.thinking_tokens <= 4


@pytest.mark.parametrize("size", [1, 6, 1000])
def test_the_clients_stream_helper(client: Any, engine: SpeakingEngine, size: int) -> None:
    engine.size = size
    whole = client.messages.create(**ASKED, tools=[TOOL])
    with client.messages.stream(**ASKED, tools=[TOOL]) as stream:
        events = list(stream)
        final = stream.get_final_message()
    ids = [{"id": block.to_dict().get("id")} for block in whole.content]
    for block, twin, own in zip(final.content, whole.content, ids, strict=True):
        assert block.to_dict() | own == twin.to_dict() | own
    assert (final.stop_reason, final.usage.output_tokens) == (
        whole.stop_reason,
        whole.usage.output_tokens,
    )
    kinds = [event.type for event in events]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    deltas = [event.delta.type for event in events if event.type == "content_block_delta"]
    order = ["thinking_delta", "signature_delta", "text_delta", "input_json_delta"]
    assert list(dict.fromkeys(deltas)) == order
    parts = [event.partial_json for event in events if event.type == "input_json"]
    assert "".join(parts) == ARGUMENTS + "{}"


def test_content_comes_back_as_history(client: Any, engine: SpeakingEngine) -> None:
    first = client.messages.create(**ASKED, tools=[TOOL])
    ids = [block.id for block in first.content if block.type == "tool_use"]
    text = {"type": "text", "text": "22 C", "cache_control": {"type": "ephemeral"}}
    results = turn(
        "user",
        {"type": "text", "text": "Here."},
        {"type": "tool_result", "tool_use_id": ids[1], "content": "no city", "is_error": True},
        {"type": "tool_result", "tool_use_id": ids[0], "content": [text]},
        {"type": "text", "text": "And now?"},
    )
    history = [USER, {"role": "assistant", "content": first.content}, results]
    answer = client.messages.create(
        **ASKED | {"messages": history}, system="Be kind.", tools=[TOOL]
    )
    assert answer.content
    one, two = (
        f"<tool_call>{call_id} get_current_weather {arguments}</tool_call>"
        for call_id, arguments in zip(ids, (ARGUMENTS, "{}"), strict=True)
    )
    assert engine.prompt().partition("</tools>\n")[2] == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        f"<|im_start|>user\n{USER['content']}<|im_end|>\n"
        f"<|im_start|>assistant\n[Hm.]I look.{one}{two}<|im_end|>\n"
        f"<|im_start|>tool\nError: no city of get_current_weather {ids[1]}<|im_end|>\n"
        f"<|im_start|>tool\n22 C of get_current_weather {ids[0]}<|im_end|>\n"
        "<|im_start|>user\nHere.\nAnd now?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_histories_of_other_shapes(server: LiveServer, engine: SpeakingEngine) -> None:
    redacted = {"type": "redacted_thinking", "data": "xyz"}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    other = USE | {"id": "t2"}
    histories = [
        # A result without content, and results in two turns of one role.
        [USER, turn("assistant", redacted, USE, other),
         turn("user", {"type": "tool_result", "tool_use_id": "t1"}),
         turn("user", RESULT | {"tool_use_id": "t2"})],
        # The assistant's turn in two parts; reasoning alone is no turn.
        [USER, turn("assistant", thought), turn("assistant", USE, other),
         turn("user", RESULT, RESULT | {"tool_use_id": "t2"}), turn("assistant", thought)],
    ]  # fmt: skip
    for messages in histories:
        response = server.client.post("/v1/messages", json=ASKED | {"messages": messages})
        assert response.status_code == 200, response.text
        turns = [t.partition("\n")[0] for t in engine.prompt().split("<|im_start|>")[1:]]
        assert turns == ["user", "assistant", "tool", "tool", "assistant"]


def grammar_of(server: LiveServer, engine: SpeakingEngine, path: str, **body: Any) -> Grammar:
    response = server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    grammar = engine.seen[-1].grammar
    assert grammar is not None
    return grammar


@pytest.mark.parametrize(
    ("choice", "chats"),
    [
        ({"type": "any"}, "required"),
        ({"type": "tool", "name": "now"}, {"type": "function", "function": {"name": "now"}}),
        ({"type": "auto"}, "auto"),
        (None, None),
    ],
)
@pytest.mark.parametrize("is_parallel", [False, True])
def test_calls_are_constrained_as_the_chat_apis(
    server: LiveServer, engine: SpeakingEngine, choice: Any, chats: Any, is_parallel: bool
) -> None:
    if choice is not None:
        choice = choice | {"disable_parallel_tool_use": not is_parallel}
    ours = grammar_of(
        server, engine, "/v1/messages", **ASKED, tools=[TOOL, OTHER], tool_choice=choice
    )
    prompt = engine.prompt()
    fields = {"tool_choice": chats, "parallel_tool_calls": is_parallel or choice is None}
    chat = {"messages": [USER], "tools": CHAT_TOOLS, **fields}
    assert ours == grammar_of(server, engine, "/v1/chat/completions", **chat)
    assert prompt == engine.prompt()


def test_choices(client: Any, engine: SpeakingEngine) -> None:
    single = {"type": "auto", "disable_parallel_tool_use": True}
    answer = client.messages.create(**ASKED, tools=[TOOL], tool_choice=single)
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use"]
    answer = client.messages.create(**ASKED, tools=[TOOL], tool_choice={"type": "none"})
    assert answer.content[-1].text == HERMES
    assert answer.stop_reason == "end_turn"
    assert "<tools>" not in engine.prompt()


def test_thinking(client: Any, engine: SpeakingEngine) -> None:
    for thinking, shown, budget in (
        ({"type": "enabled", "budget_tokens": 1024}, "True", 1024),
        ({"type": "adaptive"}, "True", None),
        ({"type": "disabled"}, "False", None),
    ):
        client.messages.create(**ASKED, thinking=thinking)
        assert engine.prompt().startswith(shown)
        limit = engine.seen[-1].reasoning_limit
        assert (None if limit is None else limit.max_tokens) == budget


def test_any_budget_suits_a_model_that_does_not_think(engine: SpeakingEngine) -> None:
    scripted = ScriptedEngine()
    with LiveServer(scripted) as server:
        thinking = {"type": "enabled", "budget_tokens": 50}
        answer = server.client.post("/v1/messages", json=ASKED | {"thinking": thinking})
        assert [block["type"] for block in answer.json()["content"]] == ["text"]
        assert scripted.seen[-1].reasoning_limit is None


def test_output_config(server: LiveServer, engine: SpeakingEngine) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    config = {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}
    ours = grammar_of(server, engine, "/v1/messages", **ASKED, output_config=config)
    assert (ours.kind, ours.param) == ("json_schema", "output_config.format")
    assert engine.prompt().endswith("effort low<|im_start|>assistant\n")


def test_an_answer_that_is_cut(client: Any, engine: SpeakingEngine) -> None:
    engine.answer, engine.end = HERMES[:85], "length"
    answer = client.messages.create(**ASKED, tools=[TOOL])
    assert answer.stop_reason == "max_tokens"
    assert answer.content[-1].input == {}
    with client.messages.stream(**ASKED, tools=[TOOL]) as stream:
        final = stream.get_final_message()
    assert final.content[-1].input == {}
    engine.answer, engine.end = "<think>Hm", "length"
    [thinking] = client.messages.create(**ASKED).content
    assert (thinking.type, thinking.thinking) == ("thinking", "Hm")


def test_a_stop_string_of_a_call_format_is_not_the_callers(engine: SpeakingEngine) -> None:
    react = SpeakingEngine("Thought: I look.")
    with LiveServer(react, tool_call_parser="react") as server:
        body = ASKED | {"tools": [TOOL]}
        answer = server.client.post("/v1/messages", json=body).json()
        assert answer["stop_reason"] == "end_turn"


def test_count_tokens(client: Any, engine: SpeakingEngine) -> None:
    history = [USER, turn("assistant", USE), turn("user", RESULT)]
    fields = {"model": "x", "messages": history, "system": "Be kind.", "tools": [TOOL]}
    count = client.messages.count_tokens(**fields, thinking={"type": "adaptive"})
    client.messages.create(**fields, thinking={"type": "adaptive"}, max_tokens=9)
    assert count.input_tokens == len(engine.seen[-1].prompt_token_ids)
    without = client.messages.count_tokens(**fields, tool_choice={"type": "none"})
    assert without.input_tokens < count.input_tokens - len(WEATHER["description"])


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"tools": 5}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": 5}]}, "tools[0].type"),
        ({"tools": [{"type": "bash_20250124"}, OTHER | {"mood": 5}]}, "tools[1].mood"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [OTHER | {"description": 5}]}, "tools[0].description"),
        ({"tools": [OTHER | {"input_schema": 5}]}, "tools[0].input_schema"),
        ({"tools": [OTHER | {"mood": 5}]}, "tools[0].mood"),
        ({"tools": [OTHER | {"allowed_callers": ["code"]}]}, "tools[0].allowed_callers"),
        ({"tools": [OTHER, OTHER]}, "tools[1].name"),
        (
            {
                "tools": [OTHER | {"input_schema": {"type": "x"}, "strict": True}],
                "tool_choice": {"type": "any"},
            },
            "tools[0].input_schema.type",
        ),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [OTHER], "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": [OTHER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [OTHER], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
        ({"tool_choice": {"type": "auto", "mood": 1}}, "tool_choice.mood"),
        (
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}},
            "tool_choice.disable_parallel_tool_use",
        ),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive", "budget_tokens": 9}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"output_config": {"effort": "so-so"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "x"}}}},
            "output_config.format.schema.type",
        ),
        ({"messages": [USER, turn("user", RESULT)]}, "messages[1].content[0].tool_use_id"),
        (
            {"messages": [USER, turn("assistant", USE), turn("user", STRAY)]},
            "messages[2].content[0].tool_use_id",
        ),
        (
            {"messages": [USER, turn("assistant", USE), turn("user", RESULT, RESULT)]},
            "messages[2].content[1].tool_use_id",
        ),
        (
            {
                "messages": [
                    USER,
                    turn("assistant", USE),
                    turn("user", RESULT),
                    turn("assistant", {"type": "text", "text": "so"}),
                    turn("user", RESULT),
                ]
            },
            "messages[4].content[0].tool_use_id",
        ),
        ({"messages": [USER, turn("assistant", USE, USE)]}, "messages[1].content[1].id"),
        ({"messages": [USER, turn("assistant", USE | {"id": 5})]}, "messages[1].content[0].id"),
        (
            {"messages": [USER, turn("assistant", USE | {"name": ""})]},
            "messages[1].content[0].name",
        ),
        ({"messages": [USER, turn("assistant", USE | {"input": ["x"]})]},
         "messages[1].content[0].input"),
        ({"messages": [USER, turn("assistant", USE | {"mood": 1})]}, "messages[1].content[0].mood"),
        ({"messages": [USER, turn("assistant", USE)]}, "messages[1].content"),
        ({"messages": [USER, turn("assistant", {"type": "thinking"})]},
         "messages[1].content[0].thinking"),
        ({"messages": [turn("user", USE)]}, "messages[0].content[0].type"),
        ({"messages": [USER, turn("assistant", RESULT)]}, "messages[1].content[0].type"),
        (
            {
                "messages": [
                    USER,
                    turn("assistant", USE),
                    turn("user", RESULT | {"content": [{"type": "image"}]}),
                ]
            },
            "messages[2].content[0].content[0].type",
        ),
        (
            {"messages": [USER, turn("assistant", USE), turn("user", RESULT | {"is_error": 1})]},
            "messages[2].content[0].is_error",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_refuses(server: LiveServer, path: str, fields: dict[str, Any], where: str) -> None:
    body = {"messages": [USER], **({"max_tokens": 9} if path == "/v1/messages" else {}), **fields}
    response = server.client.post(path, json=body)
    if path.endswith("count_tokens") and response.status_code == 200:
        assert "schema" in where  # schemas are compiled for answers only
        return
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(f"{where}: ")

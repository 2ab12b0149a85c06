"""Calls and reasoning in the responses API, by OpenAI's own client and over HTTP."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from rtpjax.engine.request import Grammar
from tests.server.live_server import LiveServer
from tests.server.speaking_engine import TOOL_TEMPLATE, SpeakingEngine
from tests.server.test_function_calls import ARGUMENTS, HERMES, WEATHER

TEMPLATE = TOOL_TEMPLATE.replace(
    "\n{{ m.content }}",
    "\n{% if m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}{{ m.content }}",
).replace("{% if add", "{% if reasoning_effort %}effort {{ reasoning_effort }}{% endif %}{% if add")
TOOL: Any = {**WEATHER, "type": "function", "strict": True}
OTHER: Any = {"type": "function", "name": "now", "parameters": None, "strict": None}
CHAT_TOOLS = [{"type": "function", "function": tool} for tool in (WEATHER, {"name": "now"})]
ASK: Any = {"role": "user", "content": "What's the weather like?"}
CALL: Any = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT: Any = {"type": "function_call_output", "call_id": "c1", "output": "22"}


@pytest.fixture(scope="module")
def engine() -> SpeakingEngine:
    return SpeakingEngine(template=TEMPLATE)


@pytest.fixture(scope="module")
def server(engine: SpeakingEngine) -> Iterator[LiveServer]:
    with LiveServer(engine, reasoning_parser="think") as running:
        yield running


@pytest.fixture
def client(server: LiveServer, engine: SpeakingEngine) -> Iterator[openai.OpenAI]:
    engine.answer, engine.size, engine.end = f"<think>Hm.\n</think>\n\n{HERMES}", 5, "stop"
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_a_whole_answer_with_calls(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="x", input=[ASK], tools=[TOOL, OTHER])
    reasoning, message, first, second = answer.output
    assert reasoning.type == "reasoning" and reasoning.content is not None
    assert ([part.text for part in reasoning.content], reasoning.summary) == (["Hm."], [])
    assert message.type == "message"
    assert answer.output_text == "I look."
    for call, arguments in ((first, ARGUMENTS), (second, "{}")):
        assert call.type == "function_call"
        assert (call.name, call.arguments) == ("get_current_weather", arguments)
        assert (call.status, call.call_id[:5]) == ("completed", "call_")
    assert first.id != second.id
    assert answer.status == "completed"
    assert [tool.to_dict() for tool in answer.tools] == [
        {**TOOL, "strict": True},
        {**OTHER, "description": None, "strict": True},
    ]
    assert (answer.tool_choice, answer.parallel_tool_calls) == ("auto", True)
    assert answer.usage is not None
    assert 1 <= answer.usage.output_tokens_details.reasoning_tokens <= 4


def plain(item: BaseModel, *ignored: str) -> dict[str, Any]:
    """An item without what the client's helpers add to it."""
    shown = item.model_dump(mode="json", exclude_none=True)
    parts = [{k: v for k, v in part.items() if k != "parsed"} for part in shown.get("content", ())]
    without = {"parsed_arguments", "content", *ignored}
    return {k: v for k, v in shown.items() if k not in without} | {"parts": parts}


@pytest.mark.parametrize("size", [1, 6, 1000])
def test_the_clients_stream_helper(
    client: openai.OpenAI, engine: SpeakingEngine, size: int
) -> None:
    engine.size = size
    whole = client.responses.create(model="x", input=[ASK], tools=[TOOL])
    with client.responses.stream(model="x", input=[ASK], tools=[TOOL]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [plain(item, "id", "call_id") for item in final.output] == [
        plain(item, "id", "call_id") for item in whole.output
    ]
    snapshots = [e for e in events if e.type == "response.function_call_arguments.delta"]
    assert {e.snapshot for e in snapshots} >= {ARGUMENTS, "{}"}
    reasoning = [e.delta for e in events if e.type == "response.reasoning_text.delta"]
    assert "".join(reasoning) == "Hm."
    dones = [e.item for e in events if e.type == "response.output_item.done"]
    assert [plain(item) for item in dones] == [plain(item) for item in final.output]
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_output_comes_back_as_input(client: openai.OpenAI, engine: SpeakingEngine) -> None:
    first = client.responses.create(model="x", input=[ASK], tools=[TOOL])
    ids = [item.call_id for item in first.output if item.type == "function_call"]
    results: list[Any] = [
        {"type": "function_call_output", "call_id": ids[1], "output": "rain"},
        {
            "type": "function_call_output",
            "call_id": ids[0],
            "output": [{"type": "input_text", "text": "22"}, {"type": "input_text", "text": "C"}],
        },
    ]
    history: list[Any] = [ASK, *first.output, *results]
    client.responses.create(model="x", input=history, tools=[TOOL], instructions="Be brief.")
    one, two = (
        f"<tool_call>{call_id} get_current_weather {arguments}</tool_call>"
        for call_id, arguments in zip(ids, (ARGUMENTS, "{}"), strict=True)
    )
    turns = engine.prompt().partition("</tools>\n")[2]
    assert turns == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n{ASK['content']}<|im_end|>\n"
        f"<|im_start|>assistant\n[Hm.]I look.{one}{two}<|im_end|>\n"
        f"<|im_start|>tool\nrain of get_current_weather {ids[1]}<|im_end|>\n"
        f"<|im_start|>tool\n22\nC of get_current_weather {ids[0]}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    # The same as plain JSON, as the client's own dumps write it.
    seen = engine.seen[-1].prompt_token_ids
    dumped = [item.model_dump(mode="json") for item in first.output]
    client.responses.create(
        model="x", input=[ASK, *dumped, *results], tools=[TOOL], instructions="Be brief."
    )
    assert engine.seen[-1].prompt_token_ids == seen


def test_steps_of_calls_are_turns(client: openai.OpenAI, engine: SpeakingEngine) -> None:
    second, output = CALL | {"call_id": "c2"}, OUTPUT | {"call_id": "c2"}
    client.responses.create(model="x", input=[ASK, CALL, OUTPUT, second, output, ASK])
    turns = [turn.partition("\n")[0] for turn in engine.prompt().split("<|im_start|>")[1:]]
    assert turns == ["user", "assistant", "tool", "assistant", "tool", "user", "assistant"]


def grammar_of(server: LiveServer, engine: SpeakingEngine, path: str, **body: Any) -> Grammar:
    response = server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    grammar = engine.seen[-1].grammar
    assert grammar is not None
    return grammar


@pytest.mark.parametrize(
    ("choice", "chats"),
    [
        ("required", {"tool_choice": "required"}),
        (
            {"type": "function", "name": "now"},
            {"tool_choice": {"type": "function", "function": {"name": "now"}}},
        ),
        ("auto", {"tool_choice": "auto"}),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "now"}],
            },
            {"tool_choice": "required", "tools": CHAT_TOOLS[1:]},
        ),
    ],
)
@pytest.mark.parametrize("is_parallel", [False, True])
def test_calls_are_constrained_as_the_chat_apis(
    server: LiveServer, engine: SpeakingEngine, choice: Any, chats: Any, is_parallel: bool
) -> None:
    fields = {"parallel_tool_calls": is_parallel}
    ours = grammar_of(
        server, engine, "/v1/responses",
        input=[ASK], tools=[TOOL, OTHER], tool_choice=choice, **fields,
    )  # fmt: skip
    prompt = engine.prompt()
    chat = {"messages": [ASK], "tools": CHAT_TOOLS, **fields, **chats}
    assert ours == grammar_of(server, engine, "/v1/chat/completions", **chat)
    assert ours.param == "tools"
    assert prompt.replace(', "strict": true', "") == engine.prompt()


def test_a_format_beside_functions(server: LiveServer, engine: SpeakingEngine) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    shape = {"name": "x", "schema": schema, "strict": True}
    ours = grammar_of(
        server, engine, "/v1/responses",
        input=[ASK], tools=[OTHER], text={"format": {"type": "json_schema", **shape}},
    )  # fmt: skip
    chats = grammar_of(
        server, engine, "/v1/chat/completions",
        messages=[ASK], tools=CHAT_TOOLS[1:],
        response_format={"type": "json_schema", "json_schema": shape},
    )  # fmt: skip
    assert ours.instead is not None and chats.instead is not None
    assert ours.instead == dataclasses.replace(chats.instead, param="text.format")


def test_choices(client: openai.OpenAI, engine: SpeakingEngine) -> None:
    answer = client.responses.create(
        model="x", input=[ASK], tools=[TOOL], parallel_tool_calls=False
    )
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
    assert answer.parallel_tool_calls is False
    answer = client.responses.create(model="x", input=[ASK], tools=[TOOL], tool_choice="none")
    assert "<tool_call>" in answer.output_text
    assert "<tools>" not in engine.prompt()
    choice: Any = {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "now"}]}
    answer = client.responses.create(
        model="x", input=[ASK], tools=[TOOL, OTHER], tool_choice=choice
    )
    assert answer.tool_choice is not None
    assert "get_current_weather" not in engine.prompt().partition("</tools>")[0]


def test_an_answer_that_is_cut(client: openai.OpenAI, engine: SpeakingEngine) -> None:
    engine.answer, engine.end = HERMES[:80], "length"
    answer = client.responses.create(model="x", input=[ASK], tools=[TOOL])
    assert (answer.status, [item.status for item in answer.output]) == (  # pyright: ignore
        "incomplete",
        ["completed", "incomplete"],
    )
    with client.responses.stream(model="x", input=[ASK], tools=[TOOL]) as stream:
        events = list(stream)
    last = events[-1]
    assert last.type == "response.incomplete"
    call = last.response.output[-1]
    assert call.type == "function_call"
    assert ARGUMENTS.startswith(call.arguments)
    assert call.arguments


def test_effort(client: openai.OpenAI, engine: SpeakingEngine) -> None:
    answer = client.responses.create(model="x", input="hi", reasoning={"effort": "low"})
    assert engine.prompt().endswith("effort low<|im_start|>assistant\n")
    assert answer.reasoning is not None and answer.reasoning.effort == "low"


def test_parsed_output(client: openai.OpenAI, engine: SpeakingEngine) -> None:
    class Answer(BaseModel):
        city: str

    engine.answer = '{"city": "Paris"}'
    answer = client.responses.parse(model="x", input="where?", text_format=Answer)
    assert answer.output_parsed == Answer(city="Paris")


def test_fields_that_are_harmless(server: LiveServer) -> None:
    for fields in ({"top_logprobs": 0}, {"prompt_cache_options": {"mode": "explicit"}}):
        response = server.client.post("/v1/responses", json={"input": "hi", **fields})
        assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": 5}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": 5}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search"}, OTHER | {"mood": 1}]}, "tools[1].mood"),
        ({"tools": [{"type": "namespace", "tools": []}]}, "tools[0].name"),
        ({"tools": [{"type": "namespace", "name": "n"}]}, "tools[0].tools"),
        (
            {"tools": [OTHER, {"type": "namespace", "name": "n", "tools": [{"type": "function"}]}]},
            "tools[1].tools[0].name",
        ),
        ({"tools": [{"name": "f"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [OTHER | {"strict": 1}]}, "tools[0].strict"),
        ({"tools": [OTHER | {"mood": 1}]}, "tools[0].mood"),
        ({"tools": [OTHER | {"allowed_callers": ["x"]}]}, "tools[0].allowed_callers"),
        ({"tools": [OTHER | {"parameters": 5}]}, "tools[0].parameters"),
        ({"tools": [OTHER, OTHER]}, "tools[1].name"),
        (
            {
                "tools": [OTHER | {"parameters": {"type": "thing"}, "strict": True}],
                "tool_choice": "required",
            },
            "tools[0].parameters.type",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [OTHER], "tool_choice": "some"}, "tool_choice"),
        ({"tools": [OTHER], "tool_choice": 5}, "tool_choice"),
        ({"tools": [OTHER], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [OTHER], "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tools": [OTHER], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        (
            {"tools": [OTHER], "tool_choice": {"type": "allowed_tools", "tools": []}},
            "tool_choice.mode",
        ),
        (
            {"tools": [OTHER], "tool_choice": {"type": "allowed_tools", "mode": "auto"}},
            "tool_choice.tools",
        ),
        (
            {
                "tools": [OTHER],
                "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "g"}]},
            },
            "tool_choice.tools[0].name",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"reasoning": {"effort": "so-so"}}, "reasoning.effort"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort"),
        ({"reasoning": {"summary": "none"}}, "reasoning.summary"),
        ({"input": [OUTPUT]}, "input[0].call_id"),
        ({"input": [CALL, OUTPUT | {"call_id": "c2"}]}, "input[1].call_id"),
        ({"input": [CALL, ASK, OUTPUT]}, "input[2].call_id"),
        ({"input": [CALL, OUTPUT, OUTPUT]}, "input[2].call_id"),
        ({"input": [CALL, CALL]}, "input[1].call_id"),
        ({"input": [ASK, CALL | {"call_id": None}]}, "input[1].call_id"),
        ({"input": [ASK, CALL | {"name": ""}]}, "input[1].name"),
        ({"input": [ASK, CALL | {"arguments": {}}]}, "input[1].arguments"),
        ({"input": [ASK, CALL | {"mood": 1}]}, "input[1].mood"),
        ({"input": [CALL, OUTPUT | {"output": 5}]}, "input[1].output"),
        (
            {"input": [CALL, OUTPUT | {"output": [{"type": "input_image"}]}]},
            "input[1].output[0].type",
        ),
        ({"input": [ASK, {"type": "reasoning", "content": 5}]}, "input[1].content"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"tools": [OTHER], "num_beams": 2}, "tools"),
    ],
)
def test_refuses(server: LiveServer, fields: dict[str, Any], param: str) -> None:
    response = server.client.post("/v1/responses", json={"input": "hi", **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


def test_an_error_in_the_middle_keeps_what_was_written(engine: SpeakingEngine) -> None:
    class Failing(SpeakingEngine):
        async def _generate(self, request: Any) -> Any:
            async for output in super()._generate(request):
                is_late = output.num_output_tokens > 8
                error = {"finish_reason": "error", "text": "", "error": "fire"} if is_late else {}
                yield dataclasses.replace(output, **error)

    failing = Failing(HERMES, template=TEMPLATE)
    with LiveServer(failing) as server:
        body = {"input": "hi", "tools": [TOOL], "stream": True}
        text = server.client.post("/v1/responses", json=body).text
    last = json.loads(text.strip().rpartition("data: ")[2])
    assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "server_error")

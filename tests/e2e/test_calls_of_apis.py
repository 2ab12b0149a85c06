"""Forced calls of the embedded model through the responses and messages APIs' own clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import openai
import pytest

from tests.e2e.conftest import Server

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
}
TIME = {"type": "object", "properties": {"zone": {"type": "string", "maxLength": 9}}}
SCHEMAS: dict[str, Any] = {"get_weather": SCHEMA, "get_time": TIME}
ITEMS: Any = [
    {"type": "function", "name": name, "parameters": schema, "strict": True}
    for name, schema in SCHEMAS.items()
]
TOOLS: Any = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
ASK: Any = {"role": "user", "content": "What is the weather like in Paris?"}
NAMED: Any = {"type": "function", "name": "get_weather"}
FIELDS: Any = {"model": "x", "extra_body": {"temperature": 0}}  # newer clients lack the argument


@pytest.fixture(scope="module")
def responses(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def messages(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("choice", [pytest.param(NAMED, marks=pytest.mark.slow), "required"])
def test_responses(responses: openai.OpenAI, choice: Any) -> None:
    asked = {**FIELDS, "tools": ITEMS, "tool_choice": choice, "max_output_tokens": 300}
    answer = responses.responses.create(input=[ASK], **asked)
    calls = [item for item in answer.output if item.type == "function_call"]
    assert calls == answer.output != []
    assert answer.status == "completed"
    for call in calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
        assert choice == "required" or call.name == "get_weather"
    with responses.responses.stream(input=[ASK], **asked) as stream:
        parts = [e.delta for e in stream if e.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    found = [(i.name, i.arguments) for i in final.output if i.type == "function_call"]
    assert found == [(call.name, call.arguments) for call in calls]
    assert "".join(parts) == "".join(arguments for _, arguments in found)
    assert len(parts) > len(found)  # they came while the model wrote them
    results: Any = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "22, sunny"}
        for call in calls
    ]
    after = responses.responses.create(
        input=[ASK, *answer.output, *results], max_output_tokens=20, **FIELDS
    )
    assert after.output_text


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param({"type": "tool", "name": "get_weather"}, marks=pytest.mark.slow),
        {"type": "any"},
    ],
)
def test_messages(messages: anthropic.Anthropic, choice: Any) -> None:
    asked = {**FIELDS, "tools": TOOLS, "tool_choice": choice, "max_tokens": 300}
    answer = messages.messages.create(messages=[ASK], **asked)
    uses = [block for block in answer.content if block.type == "tool_use"]
    assert uses == answer.content != []
    assert answer.stop_reason == "tool_use"
    for use in uses:
        jsonschema.validate(use.input, SCHEMAS[use.name])
        assert choice["type"] == "any" or use.name == "get_weather"
    with messages.messages.stream(messages=[ASK], **asked) as stream:
        parts = [event for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    found = [(b.name, b.input) for b in final.content if b.type == "tool_use"]
    assert found == [(use.name, use.input) for use in uses]
    assert len(parts) > len(found)
    results: Any = [
        {"type": "tool_result", "tool_use_id": use.id, "content": "22, sunny"} for use in uses
    ]
    history: Any = [
        ASK,
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": results},
    ]
    after = messages.messages.create(messages=history, max_tokens=20, tools=TOOLS, **FIELDS)
    assert after.content
    count = messages.messages.count_tokens(model="x", messages=history, tools=TOOLS)
    assert count.input_tokens == after.usage.input_tokens + (
        after.usage.cache_read_input_tokens or 0
    )

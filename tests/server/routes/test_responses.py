"""OpenAI's responses API, by its own client and over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.server.live_server import LiveServer
from tests.server.scripted_engine import CACHED_TOKENS, ScriptedEngine

ORDER = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def post(server: LiveServer, **fields: Any) -> httpx.Response:
    return server.client.post("/v1/responses", json={"input": "hi"} | fields)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    found = []
    for event in response.text.split("\n\n")[:-1]:
        name, data = event.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append(value)
    assert [value["sequence_number"] for value in found] == list(range(len(found)))
    return found


def test_a_whole_answer(client: openai.OpenAI, server: LiveServer) -> None:
    answer = client.responses.create(
        model="x",
        input="hi",
        instructions="Be kind.",
        metadata={"a": "b"},
        temperature=0.5,
        extra_body={"seed": 3},
    )
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    twin = server.client.post(
        "/v1/chat/completions", json={"messages": messages, "seed": 3, "temperature": 0.5}
    ).json()
    assert answer.output_text == twin["choices"][0]["message"]["content"]
    assert (answer.status, answer.incomplete_details, answer.object) == (
        "completed",
        None,
        "response",
    )
    assert (answer.instructions, answer.temperature, answer.metadata) == (
        "Be kind.",
        0.5,
        {"a": "b"},
    )
    assert answer.usage is not None
    assert answer.usage.input_tokens == twin["usage"]["prompt_tokens"]
    assert answer.usage.input_tokens_details.cached_tokens == CACHED_TOKENS
    assert answer.usage.output_tokens == 24


def test_the_stream_builds_the_whole_answer(server: LiveServer) -> None:
    for fields in ({}, {"max_output_tokens": 5}, {"top_logprobs": 2}):
        whole = post(server, seed=1, **fields).json()
        chunks = events(post(server, seed=1, stream=True, **fields))
        kinds = list(dict.fromkeys(chunk["type"] for chunk in chunks))
        assert kinds == [*ORDER, f"response.{whole['status']}"]
        final = chunks[-1]["response"]
        text = "".join(c["delta"] for c in chunks if c["type"] == "response.output_text.delta")
        assert text == final["output"][0]["content"][0]["text"]
        for answer in (whole, final):
            assert answer.pop("id").startswith("resp_")
            assert answer["output"][0].pop("id").startswith("msg_")
            answer.pop("created_at")
            answer.pop("completed_at")
        assert final == whole
        assert chunks[0]["response"]["status"] == "in_progress"
        assert chunks[0]["response"]["usage"] is None


def test_a_short_answer_is_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="x", input="hi", max_output_tokens=4)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_the_clients_stream_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(model="x", input="hi", extra_body={"seed": 2}) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    whole = client.responses.create(model="x", input="hi", extra_body={"seed": 2})
    assert final.output_text == whole.output_text == "".join(deltas)


def test_items_become_messages(engine: ScriptedEngine) -> None:
    items = [
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "b", "annotations": []}],
        },
        {"role": "user", "content": "c"},
    ]
    with LiveServer(engine) as server:
        assert post(server, input=items).status_code == 200
    text = engine.tokenizer.decode(engine.seen[0].prompt_token_ids)
    turns = [("system", "d"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    expected = "".join(f"<|im_start|>{role}\n{words}<|im_end|>\n" for role, words in turns)
    assert text == f"{expected}<|im_start|>assistant\n"


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="x", input="hi", top_logprobs=3, include=["message.output_text.logprobs"]
    )
    [part] = answer.output[0].content  # pyright: ignore
    assert "".join(entry.token for entry in part.logprobs) == answer.output_text
    assert all(len(entry.top_logprobs) == 3 for entry in part.logprobs)


def test_an_error_in_the_middle(engine: ScriptedEngine) -> None:
    engine.error_at = 3
    with LiveServer(engine) as server:
        assert post(server).status_code == 500
        response = post(server, stream=True)
        last = events(response)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert response.headers["x-request-id"] in last["response"]["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"role": "x", "content": "a"}]}, "input[0].role"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"input": "x" * 600}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"reasoning": {"effort": "highest"}}, "reasoning.effort"),
        ({"background": True}, "background"),
        ({"truncation": "always"}, "truncation"),
        ({"truncation": "auto", "input": "x" * 600}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"n": 2}, "n"),
        ({"include": ["the weather"]}, "include[0]"),
        ({"mood": 1}, "mood"),
    ],
)
def test_refuses(server: LiveServer, fields: dict[str, Any], param: str) -> None:
    response = post(server, **fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param

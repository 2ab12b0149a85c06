"""Anthropic's messages API over HTTP and, where it is installed, by its own client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.server.live_server import LiveServer
from tests.server.scripted_engine import CACHED_TOKENS, ScriptedEngine

USER = {"role": "user", "content": "hi"}
PROMPT_LEN = len("user\nhi\nassistant\n") + 3


def post(server: LiveServer, **fields: Any) -> httpx.Response:
    body = {"model": "x", "max_tokens": 6, "messages": [USER]} | fields
    return server.client.post("/v1/messages", json=body)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    found = []
    for event in response.text.split("\n\n")[:-1]:
        name, data = event.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append(value)
    return found


def prompt(server: LiveServer, engine: ScriptedEngine, **fields: Any) -> str:
    response = post(server, **fields)
    assert response.status_code == 200, response.text
    return engine.tokenizer.decode(engine.seen[-1].prompt_token_ids)


def test_a_whole_answer(server: LiveServer) -> None:
    answer = post(server).json()
    assert answer["id"].startswith("msg_")
    assert (answer["type"], answer["role"], answer["model"]) == (
        "message",
        "assistant",
        "org/scripted",
    )
    assert [block["type"] for block in answer["content"]] == ["text"]
    assert len(answer["content"][0]["text"]) == 6
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("max_tokens", None)
    assert answer["usage"] == {
        "input_tokens": PROMPT_LEN - CACHED_TOKENS,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": CACHED_TOKENS,
        "output_tokens": 6,
        "output_tokens_details": {"thinking_tokens": 0},
    }


def test_the_events_of_a_stream(server: LiveServer) -> None:
    found = events(post(server, stream=True))
    deltas = [event for event in found if event["type"] == "content_block_delta"]
    assert [event["type"] for event in found] == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * 6,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert all(event["delta"]["type"] == "text_delta" for event in deltas)
    assert found[0]["message"]["content"] == []
    assert found[0]["message"]["usage"]["input_tokens"] == PROMPT_LEN - CACHED_TOKENS
    assert found[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens"] == 6


def test_blocks_and_system_become_messages(engine: ScriptedEngine) -> None:
    text = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    with LiveServer(engine) as server:
        found = prompt(
            server,
            engine,
            system=[text, {"type": "text", "text": "b"}],
            messages=[
                {"role": "user", "content": [text, {"type": "text", "text": "c"}]},
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, text]},
                USER,
            ],
            metadata={"user_id": "1"},
        )
        turns = [("system", "a\nb"), ("user", "a\nc"), ("assistant", "a"), ("user", "hi")]
        expected = "".join(f"<|im_start|>{role}\n{words}<|im_end|>\n" for role, words in turns)
        assert found == f"{expected}<|im_start|>assistant\n"
        begun = prompt(server, engine, messages=[USER, {"role": "assistant", "content": "Well"}])
        assert begun.endswith("<|im_start|>assistant\nWell")


def test_why_it_stopped(server: LiveServer, engine: ScriptedEngine) -> None:
    # The scripted engine writes 24 characters and stops by itself if it may write more.
    assert post(server, max_tokens=100_000).json()["stop_reason"] == "model_context_window_exceeded"
    engine.stop_with = "END"
    with LiveServer(engine) as stopping:
        answer = post(stopping, stop_sequences=["END"]).json()
        assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "END")
        assert engine.seen[-1].sampling.stop == ("END",)
        engine.stop_with = 5
        assert post(stopping).json()["stop_reason"] == "end_turn"


def test_count_tokens(server: LiveServer) -> None:
    body = {"model": "x", "messages": [USER]}
    answer = server.client.post("/v1/messages/count_tokens", json=body)
    assert answer.json() == {"input_tokens": PROMPT_LEN}


def test_errors_have_anthropics_shape(engine: ScriptedEngine) -> None:
    with LiveServer(engine, api_keys=("secret",)) as server:
        refused = post(server)
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "authentication_error"
        server.client.headers["x-api-key"] = "secret"
        assert post(server).status_code == 200
        wrong = post(server, max_tokens=0)
        assert wrong.json() == {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "max_tokens: expected greater than or equal to 1, found 0",
            },
            "request_id": wrong.headers["request-id"],
        }
        missing = server.client.get("/v1/messages/batches")
        assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
        engine.error_at = 2
        assert post(server).json()["error"]["type"] == "api_error"
        response = post(server, stream=True)
        last = events(response)[-1]
        assert last["error"]["type"] == "api_error"
        assert last["request_id"] == response.headers["request-id"]
        assert last["request_id"] in last["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"max_tokens": None}, "max_tokens: this field is required"),
        ({"messages": []}, "messages: expected at least 1"),
        ({"messages": [5]}, "messages[0]: expected an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [USER | {"name": "x"}]}, "messages[0].name"),
        ({"system": 5}, "system"),
        ({"system": [5]}, "system[0]"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "the prompt has 619"),
        ({"mood": 1}, "mood: unknown field"),
    ],
)
def test_refuses(server: LiveServer, fields: dict[str, Any], where: str) -> None:
    response = post(server, **fields)
    assert response.status_code == 400, response.text
    assert where in response.json()["error"]["message"]


def test_anthropics_client(server: LiveServer) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0)
    asked = {"model": "x", "max_tokens": 9, "messages": [USER], "system": "Be kind."}
    whole = client.messages.create(**asked)
    assert whole.stop_reason == "max_tokens"
    assert len(whole.content[0].text) == 9
    with client.messages.stream(**asked) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(texts) == final.content[0].text
    assert final.usage.output_tokens == 9
    count = client.messages.count_tokens(model="x", messages=[USER], system="Be kind.")
    assert count.input_tokens == whole.usage.input_tokens + CACHED_TOKENS
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(**asked | {"max_tokens": -1})

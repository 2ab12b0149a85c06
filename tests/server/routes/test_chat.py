"""The chat API over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from rtpjax.errors import QueueFullError, RequestError
from tests.server.byte_engine import ByteEngine
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import CACHED_TOKENS, ScriptedEngine


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream that ends properly."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def joined(chunks: list[dict[str, Any]], index: int) -> dict[str, Any]:
    """What the whole answer's choice must be."""
    mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    assert mine[0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["finish_reason"] for c in mine[:-1]] == [None] * (len(mine) - 1)
    logprobs = [entry for c in mine if c["logprobs"] for entry in c["logprobs"]["content"]]
    return {
        "index": index,
        "message": {
            "role": "assistant",
            "content": "".join(c["delta"].get("content", "") for c in mine),
        },
        "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
        "finish_reason": mine[-1]["finish_reason"],
    }


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions"])
def test_whole_answer(server: LiveServer, path: str) -> None:
    body = {"model": "any", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    answer = server.client.post(path, json=body).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "org/scripted"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"][0]["finish_reason"] == "length"
    assert len(answer["choices"][0]["message"]["content"]) == 5
    prompt_tokens = len("user\nhi\nassistant\n") + 3
    assert answer["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 5,
        "total_tokens": prompt_tokens + 5,
        "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"n": 2, "logprobs": True, "top_logprobs": 3}])
def test_joined_stream_is_the_whole_answer(
    server: LiveServer, seed: int, fields: dict[str, Any]
) -> None:
    whole = server.chat(seed=seed, max_tokens=9, **fields).json()
    chunks = events(server.chat(seed=seed, max_tokens=9, stream=True, **fields))
    assert [joined(chunks, i) for i in range(fields.get("n", 1))] == whole["choices"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["id"] != whole["id"]


def test_choices_differ_and_are_interleaved(server: LiveServer) -> None:
    chunks = events(server.chat(n=3, seed=1, max_tokens=6, stream=True))
    order = [chunk["choices"][0]["index"] for chunk in chunks]
    assert order != sorted(order)
    assert len({joined(chunks, i)["message"]["content"] for i in range(3)}) == 3


def test_usage_in_the_stream(server: LiveServer) -> None:
    chunks = events(server.chat(stream=True, max_tokens=4, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    assert all("usage" not in chunk for chunk in events(server.chat(stream=True, max_tokens=4)))


def test_logprobs_have_bytes_and_are_sorted(server: LiveServer) -> None:
    choice = server.chat(logprobs=True, top_logprobs=4, max_tokens=3).json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == choice["message"]["content"]
    for entry in entries:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        values = [top["logprob"] for top in entry["top_logprobs"]]
        assert len(values) == 4
        assert values == sorted(values, reverse=True)


def test_logprobs_of_parts_of_characters() -> None:
    with LiveServer(ByteEngine("a\U0001f999")) as server:
        answer = server.chat(logprobs=True, top_logprobs=5, max_tokens=9).json()["choices"][0]
    assert answer["message"]["content"] == "a\U0001f999"
    entries = answer["logprobs"]["content"]
    assert [e["token"] for e in entries] == ["a", "\\xf0", "\\x9f", "\\xa6", "\\x99"]
    assert bytes(b for e in entries for b in e["bytes"]).decode() == answer["message"]["content"]
    assert all(len({t["token"] for t in e["top_logprobs"]}) == 5 for e in entries)


def test_prompt_reaches_the_engine_with_special_tokens_once() -> None:
    engine = ScriptedEngine()
    with LiveServer(engine) as server:
        server.chat("hi", max_tokens=1, cache_salt="s", priority=3)
    request = engine.seen[0]
    text = engine.tokenizer.decode(request.prompt_token_ids)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert (request.cache_salt, request.priority) == ("s", 3)


@pytest.mark.parametrize("fields", [{}, {"max_tokens": 500}, {"max_tokens": 1}])
def test_context_length_names_both_lengths(server: LiveServer, fields: dict[str, Any]) -> None:
    response = server.chat("x" * 600, **fields)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["code"] == "context_length_exceeded"
    assert all(length in error["message"] for length in ("512", "619")), error
    assert "max_tokens" not in error["message"]


def test_too_many_choices(server: LiveServer) -> None:
    response = server.chat(n=17)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "n"


def test_a_template_that_raises_is_a_400_with_its_message(server: LiveServer) -> None:
    response = server.chat("raise")
    assert response.status_code == 400
    assert "no such words here" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RequestError("too odd", param="seed", code="odd"), 400, "odd"),
        (QueueFullError("200 requests are waiting"), 429, "rate_limit_exceeded"),
        (ZeroDivisionError("secret"), 500, None),
    ],
)
def test_what_the_engine_refuses(
    engine: ScriptedEngine, stream: bool, n: int, error: Exception, status: int, code: str | None
) -> None:
    engine.refuse_with = error
    with LiveServer(engine) as server:
        response = server.chat(stream=stream, n=n)
        assert response.status_code == status
        assert response.json()["error"]["code"] == code
        assert "secret" not in response.text
        assert ("retry-after" in response.headers) == (status == 429)
        engine.refuse_with = None
        assert server.chat(max_tokens=2).status_code == 200


@pytest.mark.parametrize("n", [1, 2])
def test_an_engine_error_in_the_middle(engine: ScriptedEngine, n: int) -> None:
    engine.error_at = 3
    with LiveServer(engine) as server:
        whole = server.chat(n=n)
        assert whole.status_code == 500
        error = whole.json()["error"]
        assert whole.headers["x-request-id"] in error["message"]
        assert (error["code"], "fire" in whole.text) == ("engine_error", False)
        chunks = events(server.chat(n=n, stream=True))
        assert chunks[-1]["error"]["type"] == "server_error"
        assert "choices" in chunks[-2]
    assert not engine.running

"""The legacy completions API over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.byte_engine import ByteEngine
from tests.server.live_server import LiveServer


def complete(server: LiveServer, **fields: Any) -> dict[str, Any]:
    response = server.client.post("/v1/completions", json=fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_whole_answer(server: LiveServer) -> None:
    answer = complete(server, prompt="abc")
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 16


def test_prompts_times_n_in_order(server: LiveServer) -> None:
    alone = [
        complete(server, prompt=p, seed=s, max_tokens=4)["choices"][0]["text"]
        for p in ("one", "two")
        for s in (5, 6)
    ]
    answer = complete(server, prompt=["one", "two"], n=2, seed=5, max_tokens=4)
    assert [choice["text"] for choice in answer["choices"]] == alone
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 6


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"echo": True},
        {"n": 2},
        {"logprobs": 2},
        {"echo": True, "logprobs": 2, "n": 2},
    ],
)
def test_joined_stream_is_the_whole_answer(server: LiveServer, fields: dict[str, Any]) -> None:
    body = {"prompt": "abc", "seed": 3, "max_tokens": 6, **fields}
    whole = complete(server, **body)["choices"]
    text = server.client.post("/v1/completions", json={**body, "stream": True}).text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    parts = [json.loads(line)["choices"][0] for line in lines]
    for choice in whole:
        mine = [part for part in parts if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        if choice["logprobs"] is not None:
            for key, values in choice["logprobs"].items():
                assert [v for part in mine for v in part["logprobs"][key]] == values


def test_legacy_logprobs(server: LiveServer) -> None:
    choice = complete(server, prompt="abc", logprobs=2, max_tokens=3)["choices"][0]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]
    assert choice["logprobs"]["token_logprobs"] == [-0.5] * 3
    assert [len(top) for top in choice["logprobs"]["top_logprobs"]] == [2] * 3


PIECES = ["\U0001f999 One", "é", "<|im_start|>", "plain", "你好"]


@pytest.mark.parametrize("prompt", PIECES)
@pytest.mark.parametrize("answer", PIECES)
@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("skip_special_tokens", [False, True])
def test_logprobs_of_parts_of_characters(
    prompt: str, answer: str, echo: bool, skip_special_tokens: bool
) -> None:
    engine = ByteEngine(answer)
    fields = {"prompt": prompt, "echo": echo, "logprobs": 5, "max_tokens": 99}
    fields["skip_special_tokens"] = skip_special_tokens
    with LiveServer(engine) as server:
        choice = complete(server, **fields)["choices"][0]
        streamed = server.client.post("/v1/completions", json={**fields, "stream": True}).text
    is_hidden = skip_special_tokens and answer.startswith("<|")
    shown = (prompt if echo else "") + ("" if is_hidden else answer)
    assert choice["text"] == shown
    logprobs = choice["logprobs"]
    ids = [i for text in ((prompt, answer) if echo else (answer,)) for i in engine.ids(text)]
    columns = zip(ids, *logprobs.values(), strict=True)
    for number, (token_id, token, _, top, offset) in enumerate(columns):
        whole = engine.text_of(token_id)
        if whole is None:
            assert token == "bytes:" + "".join(f"\\x{b:02x}" for b in engine.bytes_of(token_id))
            # A character of several tokens stands where its first one says.
            assert shown[offset].encode().find(engine.bytes_of(token_id)) >= 0
        else:
            assert token == whole
            assert is_hidden or shown.startswith(whole, offset)
        assert top is None if echo and number == 0 else len(top) == 5 and token in top
    lines = [line.removeprefix("data: ") for line in streamed.split("\n\n") if line][:-1]
    parts = [json.loads(line)["choices"][0] for line in lines]
    assert "".join(part["text"] for part in parts) == shown
    for key, values in logprobs.items():
        found = [v for part in parts if part["logprobs"] for v in part["logprobs"][key]]
        assert found == values


def test_two_tokens_with_one_text_are_both_listed() -> None:
    engine = ByteEngine("ab")
    engine.tokenizer.add_tokens(["zz", "yy"])
    padded = [len(engine.tokenizer) + 1, len(engine.tokenizer) + 2]  # both are ""
    engine.others = padded
    with LiveServer(engine) as server:
        choice = complete(server, prompt="x", logprobs=3, max_tokens=2)["choices"][0]
    assert [len(top) for top in choice["logprobs"]["top_logprobs"]] == [3, 3]
    assert f"token_id:{padded[1]}" in choice["logprobs"]["top_logprobs"][0]


def test_echo_of_token_ids_is_their_text(server: LiveServer) -> None:
    ids = server.engine.tokenizer.encode("héllo")
    choice = complete(server, prompt=ids, echo=True, max_tokens=1)["choices"][0]
    assert choice["text"].startswith("héllo")


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"prompt": [10**9]}, 400, "prompt"),
        ({"prompt": [-1]}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": "x" * 600}, 400, "prompt"),
        ({"prompt": ["x"] * 100, "n": 2}, 400, "n"),
        ({}, 400, "prompt"),
    ],
)
def test_refuses(server: LiveServer, fields: dict[str, Any], status: int, param: str) -> None:
    response = server.client.post("/v1/completions", json=fields)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param

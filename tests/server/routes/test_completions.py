"""The legacy completions API over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

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

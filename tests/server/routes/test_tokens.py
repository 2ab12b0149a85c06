"""Rendering, encoding and decoding over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.live_server import LiveServer

MESSAGES = [{"role": "user", "content": "hé"}]
RENDERED = "<|im_start|>user\nhé<|im_end|>\n<|im_start|>assistant\n"


def post(server: LiveServer, path: str, **fields: Any) -> dict[str, Any]:
    response = server.client.post(path, json=fields)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", ["/chat/render", "/v1/chat/render"])
def test_render(server: LiveServer, path: str) -> None:
    num_before = len(server.engine.seen)
    answer = post(server, path, messages=MESSAGES, temperature=0.5)
    assert answer["prompt"] == answer["input_prompt"] == RENDERED
    assert answer["prompt_token_ids"] == answer["input_ids"]
    assert server.engine.tokenizer.decode(answer["input_ids"]) == RENDERED
    assert answer["generate_config"]["temperature"] == 0.5
    assert len(server.engine.seen) == num_before


def test_encode(server: LiveServer) -> None:
    answer = post(server, "/tokenizer/encode", prompt="hé!", return_offsets_mapping=True)
    assert answer["tokens"] == ["h", "\ufffd", "\ufffd", "!"]
    assert answer["offset_mapping"] == [[0, 1], [1, 2], [1, 2], [2, 3]]
    assert answer["error"] == ""
    assert "offset_mapping" not in post(server, "/tokenizer/encode", prompt="a")


def test_there_and_back(server: LiveServer) -> None:
    for fields, text in (
        ({"prompt": "hé"}, "hé"),
        ({"text": "hé"}, "hé"),
        ({"messages": MESSAGES}, RENDERED),
        ({"messages": MESSAGES, "add_generation_prompt": False}, RENDERED[:-22]),
    ):
        answer = post(server, "/tokenize", **fields)
        assert answer["count"] == len(answer["tokens"])
        assert answer["max_model_len"] == 512
        assert post(server, "/detokenize", tokens=answer["tokens"])["prompt"] == text
    assert post(server, "/tokenize", prompt="ab", return_token_strs=True)["token_strs"] == [
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "text": "b"}, "prompt"),
        ("/tokenize", {"messages": MESSAGES, "prompt": "a"}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/tokenizer/encode", {"prompt": 5}, "prompt"),
        ("/chat/render", {"messages": MESSAGES, "web_search_options": {}}, "web_search_options"),
    ],
)
def test_refuses(server: LiveServer, path: str, fields: dict[str, Any], param: str) -> None:
    response = server.client.post(path, json=fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_a_long_answer_comes_in_pieces(server: LiveServer) -> None:
    text = "hello " * 100_000
    for _ in range(2):  # ... and its connection stays
        response = server.client.post("/tokenize", json={"prompt": text})
        assert len(response.content) == int(response.headers["content-length"]) > 10**6
        assert "transfer-encoding" not in response.headers
        assert response.json()["count"] == len(text)

"""Token ids, times, debug info and prompt log-probabilities beside the answer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.live_server import LiveServer
from tests.server.routes.test_chat import events
from tests.server.scripted_engine import CACHED_TOKENS

PROMPT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def ids(server: LiveServer, text: str) -> list[int]:
    return server.engine.tokenizer.encode(text, add_special_tokens=False)


def chat(server: LiveServer, **fields: Any) -> dict[str, Any]:
    response = server.chat("hi", seed=4, max_tokens=5, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_token_ids_of_a_chat(server: LiveServer) -> None:
    whole = chat(server, n=2, return_token_ids=True)
    assert whole["prompt_token_ids"] == ids(server, PROMPT)
    for choice in whole["choices"]:
        assert choice["token_ids"] == ids(server, choice["message"]["content"])
    stream = server.chat(
        "hi", seed=4, max_tokens=5, n=2, return_token_ids=True, stream=True, logprobs=True
    )
    chunks = events(stream)
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    for choice in whole["choices"]:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert [t for c in mine for t in c.get("token_ids", [])] == choice["token_ids"]
        assert "".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"]
    plain = chat(server)
    assert "prompt_token_ids" not in plain
    assert "token_ids" not in plain["choices"][0]


def test_token_ids_of_completions(server: LiveServer) -> None:
    body = {"prompt": ["ab", "cde"], "max_tokens": 3, "return_token_ids": True}
    choices = server.client.post("/v1/completions", json=body).json()["choices"]
    assert [c["prompt_token_ids"] for c in choices] == [ids(server, "ab"), ids(server, "cde")]
    assert [c["token_ids"] for c in choices] == [ids(server, c["text"]) for c in choices]
    parts = events(server.client.post("/v1/completions", json=body | {"stream": True}))
    for index in (0, 1):
        mine = [p["choices"][0] for p in parts if p["choices"][0]["index"] == index]
        assert mine[0]["prompt_token_ids"] == choices[index]["prompt_token_ids"]
        assert len([t for part in mine for t in part["token_ids"]]) == 3


@pytest.mark.parametrize("where", ["top", "extra_configs"])
def test_aux_info(server: LiveServer, where: str) -> None:
    fields = {"aux_info": True}
    info = chat(server, **(fields if where == "top" else {"extra_configs": fields}))["aux_info"]
    assert info["input_len"] == len(ids(server, PROMPT))
    assert (info["output_len"], info["iter_count"]) == (5, 5)
    assert (info["reuse_len"], info["prefix_len"]) == (CACHED_TOKENS, 0)
    assert 0 <= info["first_token_cost_time"] <= info["cost_time"] < 30_000
    chunks = events(server.chat("hi", max_tokens=5, aux_info=True, stream=True))
    assert [chunk["aux_info"]["output_len"] for chunk in chunks if "aux_info" in chunk] == [5]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_debug_info(server: LiveServer) -> None:
    whole = chat(server, debug_info=True, stop=["zzz"], stop_token_ids=[3], top_k=5)
    info = whole["debug_info"]
    text = whole["choices"][0]["message"]["content"]
    assert info["input_prompt"] == PROMPT
    assert info["input_ids"] == ids(server, PROMPT)
    assert (info["stop_words_list"], info["stop_word_ids_list"]) == (["zzz"], [[3]])
    assert info["generate_config"]["top_k"] == 5
    assert info["max_seq_len"] == 512
    assert (info["output_ids"], info["raw_output"]) == ([ids(server, text)], [text])


def test_prompt_logprobs(server: LiveServer) -> None:
    first, *others = chat(server, prompt_logprobs=2)["prompt_logprobs"]
    assert first is None
    token_ids = ids(server, PROMPT)[1:]
    assert [next(iter(entry)) for entry in others] == [str(t) for t in token_ids]
    assert others[0]["0"] == {"logprob": -1.0, "rank": 1, "decoded_token": "!"}
    body = {"prompt": "ab", "max_tokens": 1, "prompt_logprobs": 0}
    choice = server.client.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["prompt_logprobs"][1] == {
        str(ids(server, "b")[0]): {"logprob": -0.25, "rank": None, "decoded_token": "b"}
    }


def test_echo_with_logprobs(server: LiveServer) -> None:
    body = {"prompt": "abc", "max_tokens": 2, "logprobs": 1, "echo": True}
    choice = server.client.post("/v1/completions", json=body).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["token_logprobs"] == [None, -0.25, -0.25, -0.5, -0.5]
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4]
    assert logprobs["top_logprobs"][:2] == [None, {"!": -1.0}]
    assert "prompt_logprobs" not in choice

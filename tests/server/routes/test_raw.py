"""RTP-LLM's own API over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.server.live_server import LiveServer
from tests.server.scripted_engine import ScriptedEngine

CONFIG = {"max_new_tokens": 4, "random_seed": 3}


def post(server: LiveServer, path: str = "/", **fields: Any) -> httpx.Response:
    return server.client.post(path, json={"generate_config": CONFIG} | fields)


def infer(server: LiveServer, path: str = "/", **fields: Any) -> dict[str, Any]:
    response = post(server, path, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def stream(server: LiveServer, **fields: Any) -> list[dict[str, Any]]:
    response = post(server, yield_generator=True, **fields)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\r\n\r\n")
    assert events[-2:] == ["data:[done]", ""]
    return [json.loads(event.removeprefix("data:")) for event in events[:-2]]


def test_a_prompt(server: LiveServer) -> None:
    answer = infer(server, prompt="abc")
    body = {"prompt": "abc", "seed": 3, "max_tokens": 4, "temperature": 1.0}
    twin = server.client.post("/v1/completions", json=body).json()
    assert answer["response"] == twin["choices"][0]["text"]
    assert answer["finished"] is True
    assert (answer["aux_info"]["input_len"], answer["aux_info"]["output_len"]) == (3, 4)
    assert infer(server, text="abc")["response"] == answer["response"]
    assert infer(server, prompt="abc", generate_config={"aux_info": False})["aux_info"] == {}


def test_messages_are_rendered(server: LiveServer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    chat = server.chat("hi", seed=3, max_tokens=4).json()["choices"][0]["message"]["content"]
    for fields in ({"messages": messages}, {"prompt": messages}, {"prompt_batch": [messages]}):
        answer = infer(server, **fields)
        answer = answer["response_batch"][0] if "prompt_batch" in fields else answer
        assert answer["response"] == chat


def test_batches(server: LiveServer) -> None:
    alone = [infer(server, prompt=prompt)["response"] for prompt in ("a", "bc")]
    for path in ("/", "/batch_infer"):
        batch = infer(server, path, prompt_batch=["a", "bc"])["response_batch"]
        assert [item["response"] for item in batch] == alone
    assert [x["response"] for x in infer(server, "/batch_infer", prompt="a")["response_batch"]] == [
        alone[0]
    ]


def test_several_answers_to_a_prompt(server: LiveServer) -> None:
    answer = infer(server, prompt="a", num_return_sequences=2, return_output_ids=True)
    assert len(answer["response"]) == len(answer["aux_info"]) == len(answer["output_ids"]) == 2
    assert answer["response"][0] != answer["response"][1]
    assert answer["response"][0] == infer(server, prompt="a")["response"]


def test_streams(server: LiveServer) -> None:
    whole = infer(server, prompt="abc", return_input_ids=True)
    cumulative = stream(server, prompt="abc", return_input_ids=True)
    assert [event["response"] for event in cumulative] == [
        whole["response"][: i + 1] for i in range(4)
    ]
    assert [event["finished"] for event in cumulative] == [False] * 3 + [True]
    assert cumulative[-1]["input_ids"] == whole["input_ids"]
    parts = stream(server, prompt="abc", generate_config=CONFIG | {"return_incremental": True})
    assert [event["response"] for event in parts] == list(whole["response"])
    both = stream(server, prompt_batch=["abc", "d"])
    assert both[-1]["response_batch"][0]["response"] == whole["response"]
    assert all(item["finished"] for item in both[-1]["response_batch"])


def test_settings_beside_the_config_win(engine: ScriptedEngine) -> None:
    with LiveServer(engine) as server:
        infer(
            server, prompt="a", top_k=5, generate_config={"top_k": 3, "top_p": 0.5, "gen_length": 2}
        )
        found = engine.seen[-1].sampling
        assert (found.top_k, found.top_p, found.max_tokens, found.temperature) == (5, 0.5, 2, 1.0)


def test_an_error_in_the_middle(engine: ScriptedEngine) -> None:
    engine.error_at = 2
    with LiveServer(engine) as server:
        assert post(server, prompt="a").status_code == 500
        assert stream(server, prompt="a")[-1]["error"]["code"] == "engine_error"


def test_loss(server: LiveServer) -> None:
    body = {"prompt": "abcd", "prompt_logprobs": 0, "max_tokens": 1}
    entries = server.client.post("/v1/completions", json=body).json()["choices"][0]
    losses = [-entry["logprob"] for e in entries["prompt_logprobs"][1:] for entry in e.values()]
    assert len(losses) == 3
    assert infer(server, prompt="abcd", calculate_loss=2)["loss"] == losses
    config = {"calculate_loss": 1, "max_new_tokens": 2}
    for answer in (
        infer(server, prompt="abcd", generate_config=config),
        stream(server, prompt="abcd", generate_config=config)[-1],
    ):
        assert answer["loss"] == pytest.approx(sum(losses) / 3)
    assert "loss" not in infer(server, prompt="abcd", calculate_loss=0)
    assert infer(server, prompt="a", calculate_loss=1)["loss"] is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "text": "b"}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"text": 5}, "text"),
        ({"prompt_batch": [5]}, "prompt_batch[0]"),
        ({"prompt_batch": ["a"] * 129}, "prompt_batch"),
        ({"prompt": "x" * 600}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "x"}]}, "messages[0].role"),
        ({"prompt": "a", "generate_config": {"top_k": "x"}}, "generate_config.top_k"),
        ({"prompt": "a", "generate_config": {"num_beams": 11}}, "generate_config.num_beams"),
        (
            {"prompt": "a", "generate_config": {"calculate_loss": 3}},
            "generate_config.calculate_loss",
        ),
        ({"prompt": "a", "calculate_loss": 1, "num_beams": 2}, "calculate_loss"),
        ({"prompt": "a", "return_logits": True}, "return_logits"),
        ({"prompt": "a", "generate_config": {"frequency": 1}}, "generate_config.frequency"),
        ({"prompt": "a", "return_incremental": True}, "return_incremental"),
        ({"prompt": "a", "num_return_sequences": 99}, "n"),
        ({"prompt": "a", "urls": ["http://x"]}, "urls"),
    ],
)
def test_refuses(server: LiveServer, fields: dict[str, Any], param: str) -> None:
    response = post(server, **fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param

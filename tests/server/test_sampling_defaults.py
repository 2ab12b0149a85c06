"""What the model's generation_config.json says stands where a request says nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rtpjax.errors import CheckpointError
from rtpjax.tokenizer import read_generation_config
from server.sampling_defaults import log_sampling_defaults, sampling_defaults
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import ScriptedEngine

USER = [{"role": "user", "content": "hi"}]
DEFAULTS = {
    "temperature": 0.25,
    "top_p": 0.5,
    "top_k": 9,
    "min_p": 0.125,
    "repetition_penalty": 1.5,
}
# Where an answer is generated, a body, and the API's own temperature.
ROUTES: list[tuple[str, dict[str, Any], float]] = [
    ("/v1/chat/completions", {"messages": USER}, 0.7),
    ("/v1/batch/chat/completions", {"requests": [{"messages": USER}]}, 0.7),
    ("/v1/completions", {"prompt": "hi"}, 0.7),
    ("/v1/responses", {"input": "hi"}, 0.7),
    ("/v1/messages", {"messages": USER, "max_tokens": 4}, 1.0),
    ("/", {"prompt": "hi"}, 1.0),
    ("/batch_infer", {"prompt_batch": ["hi"]}, 1.0),
]


def sampling(engine: ScriptedEngine, server: LiveServer, path: str, body: Any) -> dict[str, Any]:
    response = server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return {name: getattr(engine.seen[-1].sampling, name) for name in DEFAULTS}


@pytest.mark.parametrize(("path", "body", "temperature"), ROUTES)
def test_defaults_of_the_model(
    engine: ScriptedEngine, path: str, body: dict[str, Any], temperature: float
) -> None:
    own = {"temperature": 0.75, "top_p": 1.0, "top_k": 0}
    asked = {"requests": [body["requests"][0] | own]} if "requests" in body else body | own
    with LiveServer(engine, sampling_defaults=DEFAULTS) as server:
        assert sampling(engine, server, path, body) == DEFAULTS
        assert sampling(engine, server, path, asked) == DEFAULTS | own
    with LiveServer(engine := ScriptedEngine()) as server:
        plain = {"temperature": temperature, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
        assert sampling(engine, server, path, body) == plain | {"repetition_penalty": 1.0}


def test_what_else_says_how_to_sample(engine: ScriptedEngine) -> None:
    path, body, _ = ROUTES[0]
    with LiveServer(engine, sampling_defaults=DEFAULTS) as server:
        greedy = body | {"extra_configs": {"do_sample": False}}
        assert sampling(engine, server, path, greedy)["temperature"] == 0
        config = body | {"extra_configs": {"top_k": 3}}
        assert sampling(engine, server, path, config) == DEFAULTS | {"top_k": 3}
        # Beams are compared by the model's own probabilities.
        response = server.client.post(path, json=body | {"num_beams": 2, "max_tokens": 2})
        assert response.status_code == 200, response.text
        assert engine.seen[-1].sampling.repetition_penalty == 1.0
        answer = server.client.post("/v1/responses", json={"input": "hi"}).json()
        assert (answer["temperature"], answer["top_p"]) == (0.25, 0.5)
        assert server.client.get("/v1/models").json()["data"][0]["sampling_defaults"] == DEFAULTS


@pytest.mark.parametrize(
    ("config", "expected", "warned"),
    [
        ({}, {}, None),
        (DEFAULTS | {"do_sample": False, "eos_token_id": 2}, DEFAULTS, None),
        ({"top_k": None, "temperature": 1}, {"temperature": 1}, None),
        ({"temperature": "warm", "top_p": 0.5}, {"top_p": 0.5}, "temperature is ignored"),
        ({"temperature": 9}, {}, "expected less than or equal to 2, found 9"),
        ({"top_p": 1.5}, {}, "top_p"),
        ({"top_k": 2.5}, {}, "top_k"),
        ({"repetition_penalty": float("nan")}, {}, "repetition_penalty"),
        ({"repetition_penalty": 0}, {}, "repetition_penalty"),
    ],
)
def test_values_are_checked(
    config: dict[str, Any],
    expected: dict[str, Any],
    warned: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert sampling_defaults(config) == expected
    assert (warned or "") in caplog.text
    assert bool(caplog.text) == (warned is not None)


def test_the_start_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_sampling_defaults({})
        log_sampling_defaults({"temperature": 0.6, "top_k": 20})
    [line] = [record.getMessage() for record in caplog.records]
    assert "temperature 0.6, top_k 20" in line
    assert "GENERATION_CONFIG=none" in line


def test_reads_the_file(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"top_p": 0.5}))
    assert read_generation_config(tmp_path) == {"top_p": 0.5}
    for text in ("{", "[1]"):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=r"generation_config\.json"):
            read_generation_config(tmp_path)


def test_zero_top_p_keeps_the_likeliest_token(engine: ScriptedEngine) -> None:
    path, body, _ = ROUTES[0]
    with LiveServer(engine) as server:
        assert 0 < sampling(engine, server, path, body | {"top_p": 0})["top_p"] < 1e-6

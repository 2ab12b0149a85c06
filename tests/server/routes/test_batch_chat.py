"""Several chat requests in one body."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from rtpjax.errors import RequestError
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import ScriptedEngine

HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "seed": 1}


def batch(server: LiveServer, requests: Any) -> httpx.Response:
    return server.client.post("/v1/batch/chat/completions", json={"requests": requests})


def test_each_answer_is_as_if_alone(server: LiveServer) -> None:
    requests = [HI, HI | {"seed": 2, "n": 2}, HI | {"logprobs": True}]
    answers = batch(server, requests).json()["responses"]
    for request, answer in zip(requests, answers, strict=True):
        alone = server.client.post("/v1/chat/completions", json=request).json()
        for key in ("object", "model", "choices", "usage"):
            assert answer[key] == alone[key]
    assert len({answer["id"] for answer in answers}) == 3


@pytest.mark.parametrize(
    ("requests", "param"),
    [
        ([], "requests"),
        ([HI, {"messages": []}], "requests[1].messages"),
        ([HI | {"stream": True}], "requests[0].stream"),
        ([HI | {"temperature": 9}], "requests[0].temperature"),
        ([HI | {"web_search_options": {}}], "requests[0].web_search_options"),
        ([5], "requests[0]"),
        ([HI | {"n": 16}] * 9, "requests"),
        ([HI] * 129, "requests"),
    ],
)
def test_refuses(server: LiveServer, requests: Any, param: str) -> None:
    response = batch(server, requests)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        (
            {"messages": [{"role": "user", "content": "x" * 9999}]},
            "messages",
            "context_length_exceeded",
        ),
        ({"user_template": "x"}, "user_template", None),
        ({"response_format": {"type": "regex", "pattern": "a"}, "num_beams": 2}, "", None),
    ],
)
def test_what_the_job_refuses_names_its_request(
    server: LiveServer, fields: dict[str, Any], param: str, code: str | None
) -> None:
    """What is found out after the bodies were checked: lengths, templates, combinations."""
    alone = server.client.post("/v1/chat/completions", json=HI | fields).json()["error"]
    error = batch(server, [HI, HI | fields]).json()["error"]
    assert error["param"] == f"requests[1].{alone['param']}"
    assert error["message"] == f"requests[1]: {alone['message']}"
    assert error["code"] == alone["code"] == code
    assert alone["param"].startswith(param)


def test_one_failure_ends_all(engine: ScriptedEngine) -> None:
    engine.refuse_with = RequestError("too odd", param="seed")
    with LiveServer(engine) as server:
        assert batch(server, [HI, HI]).status_code == 400
        engine.refuse_with, engine.error_at = None, 2
        assert batch(server, [HI, HI]).status_code == 500
        assert not engine.running

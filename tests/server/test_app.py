"""What is true of every route: errors, keys, limits, the access log."""

from __future__ import annotations

import logging
import re

import httpx
import pytest

from tests.server.live_server import LiveServer, wait_until
from tests.server.scripted_engine import ScriptedEngine


def assert_error(response: httpx.Response, status: int) -> dict[str, object]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    return error


def test_sanics_own_errors_are_openai_shaped(server: LiveServer) -> None:
    assert_error(server.client.get("/nope"), 404)
    response = server.client.get("/v1/chat/completions")
    assert_error(response, 405)
    assert response.headers["allow"] == "OPTIONS, POST"
    assert_error(server.client.post("/v1/chat/completions", content=b"{not json"), 400)
    assert_error(server.client.post("/v1/chat/completions"), 400)


def test_body_over_the_limit(engine: ScriptedEngine) -> None:
    with LiveServer(engine, max_body_bytes=1000) as server:
        assert_error(server.chat("x" * 2000), 413)
        assert server.chat(max_tokens=1).status_code == 200


def test_access_log(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="server.access_log"):
        answer = server.chat("hi", max_tokens=3, n=2).json()
        server.client.get("/nope", headers={"X-Request-ID": "mine"})
        wait_until(lambda: len(caplog.messages) >= 2)
    assert isinstance(server.engine, ScriptedEngine)
    first, second = (request.request_id for request in server.engine.seen[-2:])
    line = re.escape(f"prompt=21 output=6 answer={answer['id']} engine={first},{second}")
    pattern = rf"POST /v1/chat/completions 200 [0-9.]+ms {line} id=req_[0-9a-f]{{24}}"
    assert re.fullmatch(pattern, caplog.messages[0])
    assert re.fullmatch(r"GET /nope 404 [0-9.]+ms id=mine", caplog.messages[1])
    assert len(caplog.messages) == 2


GENERATING = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"prompt": "x", "max_tokens": 9},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9},
    "/": {"prompt": "x"},
}
STREAM = {"/": {"yield_generator": True}}


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("kind", ["engine", "unforeseen"])
def test_what_fails_inside_stays_inside(
    engine: ScriptedEngine,
    caplog: pytest.LogCaptureFixture,
    path: str,
    is_streamed: bool,
    is_late: bool,
    kind: str,
) -> None:
    """The caller gets a fixed text and an id; the log has the same id, and the reason."""
    secret = "RESOURCE_EXHAUSTED: /secret/path"
    if kind == "unforeseen":
        engine.raise_at = (2 if is_late else 0, ZeroDivisionError(secret))
    else:
        engine.error_at, engine.error = 2 if is_late else 0, secret
    body = GENERATING[path] | (STREAM.get(path, {"stream": True}) if is_streamed else {})
    with LiveServer(engine) as server, caplog.at_level(logging.INFO):
        response = server.client.post(path, json=body, headers={"X-Request-ID": "the-id"})
        assert server.chat(max_tokens=1).status_code in (200, 500)
    is_in_stream = is_streamed and is_late
    assert response.status_code == (200 if is_in_stream else 500)
    assert "secret" not in response.text and "ZeroDivision" not in response.text
    told = "the server failed while it worked on this request; its log says why, under the-id"
    assert response.text.count(told) == 1
    reasons = [r for r in caplog.records if "the-id" in r.getMessage() and r.levelname == "ERROR"]
    assert len(reasons) == 1
    assert "secret" in logging.Formatter().format(reasons[0])
    assert not engine.running

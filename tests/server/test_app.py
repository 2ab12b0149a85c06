"""What is true of every route: errors, keys, limits, the access log."""

from __future__ import annotations

import logging

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
    assert response.headers["allow"] == "POST"
    assert_error(server.client.post("/v1/chat/completions", content=b"{not json"), 400)
    assert_error(server.client.post("/v1/chat/completions"), 400)


def test_body_over_the_limit(engine: ScriptedEngine) -> None:
    with LiveServer(engine, max_body_bytes=1000) as server:
        assert_error(server.chat("x" * 2000), 413)
        assert server.chat(max_tokens=1).status_code == 200


def test_api_keys(engine: ScriptedEngine) -> None:
    with LiveServer(engine, api_keys=("one", "two")) as server:
        assert assert_error(server.chat(), 401)["code"] == "invalid_api_key"
        for key, status in (("two", 200), ("three", 401), ("o", 401)):
            server.client.headers["Authorization"] = f"Bearer {key}"
            assert server.chat(max_tokens=1).status_code == status
        del server.client.headers["Authorization"]
        assert server.client.get("/v1/models").status_code == 401
        assert server.client.get("/health").status_code == 200
        assert server.client.get("/metrics").status_code == 200


def test_access_log(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="server.access_log"):
        server.chat("hi", max_tokens=3, stream=True)
        server.client.get("/nope")
        wait_until(lambda: len(caplog.messages) >= 2)
    assert caplog.messages[0].startswith("POST /v1/chat/completions 200 ")
    assert caplog.messages[0].endswith("ms prompt=21 output=3")
    assert caplog.messages[1].startswith("GET /nope 404 ")
    assert len(caplog.messages) == 2

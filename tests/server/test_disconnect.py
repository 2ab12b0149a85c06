"""A client that leaves stops the engine's work for it."""

from __future__ import annotations

import json
import logging
import socket

import pytest

from tests.server.live_server import LiveServer, wait_until
from tests.server.scripted_engine import ScriptedEngine


def open_request(server: LiveServer, **fields: object) -> socket.socket:
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode()
    sock = socket.create_connection(("127.0.0.1", server.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body)
    return sock


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("padding", [0, 300_000])
def test_leaving_aborts(
    engine: ScriptedEngine,
    caplog: pytest.LogCaptureFixture,
    n: int,
    stream: bool,
    padding: int,
) -> None:
    engine.delay_s = 0.02
    with LiveServer(engine) as server, caplog.at_level(logging.INFO, logger="server.access_log"):
        fields = {"n": n, "stream": stream, "max_tokens": 400, "user": "x" * padding}
        sock = open_request(server, **fields)
        wait_until(lambda: len(engine.running) == n)
        if stream:
            assert b"200 OK" in sock.recv(4096)
        sock.close()
        wait_until(lambda: not engine.running, timeout_s=2)
        assert len(engine.aborted) == n
        wait_until(lambda: any(" 499 " in message for message in caplog.messages))
        engine.delay_s = 0
        assert server.chat(max_tokens=2).status_code == 200
        metrics = server.client.get("/metrics").text
        assert f'rtpjax_requests_total{{finish_reason="abort"}} {n}.0' in metrics

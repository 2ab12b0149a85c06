"""What RTP-LLM's schedulers ask."""

from __future__ import annotations

import logging

from tests.server.live_server import LiveServer


def test_cache_and_worker(server: LiveServer) -> None:
    cache = {"available_kv_cache": 64, "total_kv_cache": 160, "block_size": 16}
    assert server.client.get("/cache_status").json() == cache
    worker = server.client.get("/worker_status").json()
    assert worker["alive"] is True
    assert worker["cache_status"] == cache


def test_log_level(server: LiveServer) -> None:
    root = logging.getLogger()
    before = root.level
    try:
        answer = server.client.post("/set_log_level", json={"log_level": "ERROR"})
        assert answer.json() == {"status": "ok"}
        assert root.level == logging.ERROR
        refused = server.client.post("/set_log_level", json={"log_level": "LOUD"})
        assert refused.json()["error"]["param"] == "log_level"
    finally:
        root.setLevel(before)

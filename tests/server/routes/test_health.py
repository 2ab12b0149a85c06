"""Probes, models and metrics."""

from __future__ import annotations

from tests.server.live_server import LiveServer, wait_until
from tests.server.scripted_engine import ScriptedEngine


def test_health_follows_the_engine(engine: ScriptedEngine) -> None:
    engine.is_ready = False
    engine.start_gate.clear()
    with LiveServer(engine) as server:
        loading = server.client.get("/health")
        assert (loading.status_code, loading.json()["reason"]) == (
            503,
            "the model is still loading",
        )
        refused = server.chat()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert server.client.get("/liveness").status_code == 200
        assert server.client.get("/status").json() == "ok"
        server._loop.call_soon_threadsafe(engine.start_gate.set)
        wait_until(lambda: server.client.get("/health").status_code == 200)
        assert server.chat(max_tokens=1).status_code == 200
        engine.is_draining = True
        assert server.client.get("/health").json()["reason"] == "the server is shutting down"
        assert server.chat().status_code == 503
        engine.failure = "a step failed on process 0: XlaRuntimeError: /secret"
        for failed in (server.client.get("/health"), server.chat()):
            assert failed.status_code == 503
            assert "the engine has stopped; the server's log says why" in failed.text
            assert "secret" not in failed.text


def test_models(server: LiveServer) -> None:
    listed = server.client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["org/scripted"]
    assert server.client.get("/v1/models/org/scripted").json() == listed["data"][0]
    assert server.client.get("/v1/models/org%2Fscripted").json() == listed["data"][0]
    missing = server.client.get("/v1/models/gpt-4")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_metrics(engine: ScriptedEngine) -> None:
    with LiveServer(engine) as server:
        server.chat(n=2, max_tokens=3)
        response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = response.text.splitlines()
    for expected in (
        'rtpjax_requests_total{finish_reason="length"} 2.0',
        "rtpjax_ttft_seconds_count 2.0",
        "rtpjax_tpot_seconds_count 2.0",
        "rtpjax_e2e_latency_seconds_count 2.0",
        "rtpjax_page_usage_ratio 0.6",
        "rtpjax_prefix_cache_hits_tokens_total 7.0",
        "rtpjax_recompiles_total 0.0",
        "rtpjax_waiting 0.0",
    ):
        assert expected in lines

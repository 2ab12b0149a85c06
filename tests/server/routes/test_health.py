"""Probes, models and metrics."""

from __future__ import annotations

from importlib.metadata import version

from prometheus_client.parser import text_string_to_metric_families

from rtpjax.errors import QueueFullError
from server.metrics import _VLLM, _VLLM_LABELS
from tests.server.live_server import LiveServer, wait_until
from tests.server.scripted_engine import ScriptedEngine

_OURS = {theirs: ours for ours, theirs in _VLLM_LABELS.items()}


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


def test_a_model_with_several_names(engine: ScriptedEngine) -> None:
    with LiveServer(engine, served_model_names=("mine", "org/alias")) as server:
        listed = server.client.get("/v1/models").json()["data"]
        assert [(model["id"], model.get("parent")) for model in listed] == [
            ("mine", None),
            ("org/alias", "mine"),
        ]
        assert server.client.get("/v1/models/org/alias").json() == listed[1]
        assert server.client.get("/v1/models/org%2Fscripted").status_code == 404
        bodies = {
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
            "/v1/completions": {"prompt": "hi"},
            "/v1/responses": {"input": "hi"},
            "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
        }
        for path, body in bodies.items():
            answer = server.client.post(path, json=body | {"model": "org/alias"}).json()
            assert answer["model"] == "mine", path
        assert 'vllm:num_requests_running{model_name="mine"}' in server.client.get("/metrics").text


def test_fingerprints(engine: ScriptedEngine) -> None:
    """The same in all chunks, another one where the model's defaults are."""
    found = []
    for defaults in ({}, {"temperature": 0.5}):
        with LiveServer(engine, sampling_defaults=defaults) as server:
            whole = server.chat(max_tokens=2).json()["system_fingerprint"]
            stream = server.chat(max_tokens=2, stream=True).text
            assert stream.count(f'"system_fingerprint":"{whole}"') == stream.count('"id":')
            text = server.client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 1})
            assert text.json()["system_fingerprint"] == whole
            found.append(whole)
        engine.is_ready, engine.is_draining = True, False
    assert found[0] != found[1]
    assert all(name.startswith("fp_") for name in found)


def test_what_orchestrators_and_gateways_ask_for(engine: ScriptedEngine) -> None:
    with LiveServer(engine) as server:
        get = server.client.get
        assert get("/version").json() == {"version": version("rtpjax")}
        assert get("/load").json() == {"server_load": 0}
        assert server.client.post("/ping").status_code == 200
        for path in ("/ready", "/ping"):
            assert get(path).json() == {"status": "ok"}
        engine.is_draining = True
        for path in ("/ready", "/ping"):
            assert get(path).status_code == 503


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
        # n=2: the choices of a prompt are sequences, each with its prompt.
        "rtpjax_request_prompt_tokens_count 2.0",
        "rtpjax_request_generation_tokens_sum 6.0",
        "rtpjax_inter_token_seconds_count 4.0",
        "rtpjax_queue_seconds_count 2.0",
        'rtpjax_prepare_seconds_count{lane="small"} 1.0',
        'rtpjax_http_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1.0',
    ):
        assert expected in lines, expected
    assert any(line.startswith("rtpjax_event_loop_lag_seconds_count ") for line in lines)
    [build] = [line for line in lines if line.startswith("rtpjax_build_info{")]
    assert 'model_name="org/scripted"' in build
    assert build.endswith("} 1.0")


def test_refusals_are_counted(engine: ScriptedEngine) -> None:
    """... by route and status, and by their codes; what callers choose makes no series."""
    with LiveServer(engine) as server:
        server.chat(temperature=9)
        server.chat(no_such_field=1)
        server.chat("x" * 600)
        server.chat(use_beam_search=True)
        for path in ("/nowhere", "/no/where/else"):
            server.client.get(path)
        server.client.request("BREW", "/v1/models")
        engine.refuse_with = QueueFullError("full")
        assert server.chat().status_code == 429
        engine.refuse_with = None
        engine.raise_at = 1, RuntimeError("boom")
        assert server.chat().status_code == 500
        assert "boom" not in server.chat(stream=True).text
        lines = server.client.get("/metrics").text.splitlines()
    chat = 'method="POST",route="/v1/chat/completions"'
    for expected in (
        f'rtpjax_http_requests_total{{{chat},status="400"}} 4.0',
        f'rtpjax_http_requests_total{{{chat},status="429"}} 1.0',
        f'rtpjax_http_requests_total{{{chat},status="500"}} 1.0',
        'rtpjax_http_requests_total{method="other",route="other",status="404"} 2.0',
        'rtpjax_http_requests_total{method="other",route="other",status="405"} 1.0',
        'rtpjax_refused_total{code="invalid_request",status="400"} 2.0',
        'rtpjax_refused_total{code="context_length_exceeded",status="400"} 1.0',
        'rtpjax_refused_total{code="unsupported_parameter",status="400"} 1.0',
        'rtpjax_refused_total{code="rate_limit_exceeded",status="429"} 1.0',
        'rtpjax_refused_total{code="server_error",status="500"} 2.0',
        'rtpjax_refused_total{code="not_found",status="404"} 2.0',
    ):
        assert expected in lines, (expected, [x for x in lines if x.startswith(expected[:15])])


def test_vllms_names_have_the_same_numbers(engine: ScriptedEngine) -> None:
    with LiveServer(engine) as server:
        server.chat(n=2, max_tokens=3)
        families = list(text_string_to_metric_families(server.client.get("/metrics").text))
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    model = ("model_name", "org/scripted")
    for ours, theirs in _VLLM.items():
        found = {key: value for key, value in samples.items() if key[0].startswith(theirs)}
        assert found, theirs
        for (name, *labels), value in found.items():
            assert model in labels
            same = [(_OURS.get(k, k), v) for k, v in labels if (k, v) != model]
            assert samples[name.replace(theirs, ours), *sorted(same)] == value
    assert samples["vllm:num_requests_running", model] == 0
    assert samples["vllm:request_success_total", ("finished_reason", "length"), model] == 2
    assert samples["vllm:time_to_first_token_seconds_count", model] == 2

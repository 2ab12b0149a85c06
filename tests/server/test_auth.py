"""Who may call which route: every route there is, by its class."""

from __future__ import annotations

import ipaddress
import json
import logging
import time
from collections.abc import Iterator

import pytest

from server.routes import all_routes
from tests.server.live_server import LiveServer
from tests.server.raw_http import connected, head
from tests.server.scripted_engine import ScriptedEngine

PROBES = {
    "/health",
    "/ready",
    "/ping",
    "/liveness",
    "/status",
    "/version",
    "/docs",
    "/openapi.json",
}
OPERATORS = {"/metrics", "/load", "/worker_status", "/cache_status", "/set_log_level"}
ROUTES = [(route.method, route.path.replace("<model_id:path>", "x")) for route in all_routes()]
CALLERS = [(method, path) for method, path in ROUTES if path not in PROBES | OPERATORS]
FOR_OPERATORS = [(method, path) for method, path in ROUTES if path in OPERATORS]
# The two ways to look as if one came from elsewhere; tests have no second host.
FAR = {"X-Forwarded-For": "127.0.0.1"}
NO_KEY = {"Authorization": "Bearer"}
FOREIGN_NAME = {"Host": "evil.example:8088"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def keyed() -> Iterator[LiveServer]:
    with LiveServer(
        ScriptedEngine(), api_keys=("one", "two"), admin_api_keys=("chief",)
    ) as running:
        yield running


def test_the_classes_are_those_of_the_documentation() -> None:
    found = {route.path: route.access for route in all_routes()}
    assert {path for path, access in found.items() if access == "open"} == PROBES
    assert {path for path, access in found.items() if access == "operator"} == OPERATORS


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_asks_for_the_key_of_its_class(
    keyed: LiveServer, method: str, path: str
) -> None:
    is_open, is_for_operators = path in PROBES, path in OPERATORS

    def status(headers: dict[str, str], suffix: str = "") -> int:
        return keyed.client.request(method, path + suffix, headers=headers).status_code

    for headers in ({}, bearer("three"), bearer("o"), {"x-api-key": "wrong"}, NO_KEY):
        assert (status(headers) == 401) is not is_open
        assert (status(headers, "/") == 401) is not is_open
    for headers in (bearer("two"), {"x-api-key": "one"}, {"Authorization": "bearer one"}):
        assert status(headers) not in (401,)
        assert (status(headers) == 403) is is_for_operators
    assert status(bearer("chief")) not in (401, 403)
    assert status({**bearer("chief"), **FAR}) not in (401, 403)


@pytest.mark.parametrize("path", ["/nope", "/v1/files", "/v1/chat/completions/x"])
@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD"])
def test_without_a_key_nobody_learns_which_routes_there_are(
    keyed: LiveServer, method: str, path: str
) -> None:
    assert keyed.client.request(method, path).status_code == 401
    assert keyed.client.request(method, path, headers=bearer("one")).status_code == 404


@pytest.mark.parametrize(("method", "path"), FOR_OPERATORS)
@pytest.mark.parametrize("keys", [(), ("one",)])
def test_without_an_operators_key_only_this_host_is_answered(
    engine: ScriptedEngine, keys: tuple[str, ...], method: str, path: str
) -> None:
    body = {"log_level": "INFO"} if path == "/set_log_level" else None
    with LiveServer(engine, api_keys=keys) as server:
        for name in ("127.0.0.1", "localhost:8088", "[::1]:1"):
            near = server.client.request(method, path, json=body, headers={"Host": name})
            assert near.status_code == 200
        for headers in (FAR, FOREIGN_NAME, {"Forwarded": "for=x"}, {"X-Real-IP": "10.0.0.1"}):
            far = server.client.request(
                method, path, json=body, headers={**headers, **bearer("one")}
            )
            assert far.status_code == 403
            assert "ADMIN_API_KEY" in far.json()["error"]["message"]
            assert far.json()["error"]["code"] == "permission_denied"


def test_hosts_can_be_operators(engine: ScriptedEngine) -> None:
    networks = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("127.0.0.0/8"))
    with LiveServer(engine, admin_api_keys=("chief",), operator_hosts=networks) as server:
        assert server.client.get("/metrics", headers=FAR).status_code == 200
    with LiveServer(engine, admin_api_keys=("chief",), operator_hosts=networks[:1]) as server:
        assert server.client.get("/metrics").status_code == 401


def test_keys_are_in_no_log_and_no_repr(
    keyed: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        keyed.client.get("/v1/models", headers=bearer("one"))
        keyed.client.get("/v1/models", headers=bearer("a-wrong-secret"))
    assert "chief" not in repr(keyed._config)
    assert not any("a-wrong-secret" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(("method", "path"), [*CALLERS, ("POST", "/nope"), ("PUT", "/v1/models")])
def test_the_key_is_checked_before_the_body_is_read(
    keyed: LiveServer, method: str, path: str
) -> None:
    """The answer comes though not one byte of the body does."""
    with connected(keyed) as sock:
        started = time.monotonic()
        sock.sendall(head(method, path, Content_Length=15_000_000))
        answer = sock.recv(4096)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer.lower()
    assert b"www-authenticate: bearer" in answer.lower()
    assert time.monotonic() - started < 2


def test_a_large_body_without_a_key_is_held_nowhere(engine: ScriptedEngine) -> None:
    with LiveServer(engine, api_keys=("one",)) as server, connected(server) as sock:
        sock.sendall(head("POST", "/v1/completions", Content_Length=8_000_000))
        for _ in range(80):
            sock.sendall(b" " * 100_000)  # a client that does not look at the answer yet
        assert sock.recv(4096).startswith(b"HTTP/1.1 401 ")
        assert server.held_body_bytes == 0


@pytest.mark.parametrize("priority", [-1, 0, 5])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("key", "is_operators"), [("one", False), ("chief", True)])
def test_only_operators_run_before_others(
    keyed: LiveServer, key: str, is_operators: bool, priority: int, stream: bool
) -> None:
    body = {"prompt": "a", "max_tokens": 1, "priority": priority, "stream": stream}
    response = keyed.client.post("/v1/completions", json=body, headers=bearer(key))
    assert response.status_code == (200 if priority >= 0 or is_operators else 400)
    if response.status_code == 400:
        error = response.json()["error"]
        assert (error["param"], error["code"]) == ("priority", "priority_not_allowed")
    else:
        assert isinstance(keyed.engine, ScriptedEngine)
        assert keyed.engine.seen[-1].priority == priority


@pytest.mark.parametrize("n", [1, 2])
def test_prefixes_are_shared_within_a_key(n: int) -> None:
    def salts(server: LiveServer, *keys: str) -> list[str]:
        engine = server.engine
        assert isinstance(engine, ScriptedEngine)
        engine.seen.clear()
        for key in keys:
            for salt in (None, "mine"):
                body = {"prompt": "a", "max_tokens": 1, "n": n, "cache_salt": salt}
                server.client.post("/v1/completions", json=body, headers=bearer(key))
        return [request.cache_salt for request in engine.seen]

    keys = ("one", "two")
    with LiveServer(ScriptedEngine(), api_keys=keys, admin_api_keys=("chief",)) as server:
        first, again = salts(server, "one", "two", "chief"), salts(server, "one", "two", "chief")
    assert first == again
    assert len(set(first)) == 6
    assert not any(key in salt for salt in first for key in ("one", "two", "chief"))
    with LiveServer(ScriptedEngine(), api_keys=keys, share_prefixes=True) as server:
        assert salts(server, "one", "two") == (["", *[""] * (n - 1), *["mine"] * n]) * 2
    with LiveServer(ScriptedEngine()) as server:
        assert set(salts(server, "one")) == {"", "mine"}


def test_errors_have_the_shape_of_their_api(keyed: LiveServer) -> None:
    answer = keyed.client.post("/v1/messages", json={})
    assert json.loads(answer.text)["error"]["type"] == "authentication_error"
    assert json.loads(answer.text)["request_id"] == answer.headers["request-id"]

"""What is true of every route there is: HEAD, OPTIONS, slashes, headers, ids."""

from __future__ import annotations

import re

import httpx
import pytest

from server.routes import Route, all_routes, routes_by_path
from tests.server.live_server import LiveServer
from tests.server.raw_http import connected, head, read_to_end
from tests.server.scripted_engine import ScriptedEngine

ROUTES = list(all_routes())
GETS = [route for route in ROUTES if route.method == "GET"]
PATHS = list(routes_by_path())
ANTHROPIC = "/v1/messages"


def real(path: str) -> str:
    """The path with a value for its variable."""
    return path.replace("<model_id:path>", "org/scripted")


def name(value: object) -> str | None:
    return f"{value.method}{value.path}" if isinstance(value, Route) else None


@pytest.mark.parametrize("route", GETS, ids=name)
def test_head_is_get_without_the_body(server: LiveServer, route: Route) -> None:
    got, asked = server.client.get(real(route.path)), server.client.head(real(route.path))
    assert got.status_code == asked.status_code == 200
    assert asked.content == b""
    for header in ("content-type", "connection"):
        assert asked.headers[header] == got.headers[header]
    if route.path != "/metrics":  # its figures differ from one moment to the next
        assert asked.headers["content-length"] == str(len(got.content))


def test_nothing_follows_a_head(server: LiveServer) -> None:
    with connected(server) as sock:
        sock.sendall(head("HEAD", "/v1/models") + head("HEAD", "/nope", Connection="close"))
        answers = read_to_end(sock)
    first, second, rest = answers.split(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 ") and second.startswith(b"HTTP/1.1 404 ")
    assert rest == b""


@pytest.mark.parametrize("path", PATHS)
def test_options_and_refused_methods_name_what_is_allowed(server: LiveServer, path: str) -> None:
    methods = {route.method for route in ROUTES if route.path == path}
    allowed = methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    asked = server.client.options(real(path))
    assert (asked.status_code, asked.content) == (204, b"")
    assert asked.headers["allow"] == ", ".join(sorted(allowed))
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} - allowed:
        refused = server.client.request(method, real(path))
        assert refused.status_code == 405
        assert refused.headers["allow"] == ", ".join(sorted(allowed))


@pytest.mark.parametrize("route", ROUTES, ids=name)
@pytest.mark.parametrize("slashes", ["/", "//"])
def test_slashes_at_the_end_change_nothing(server: LiveServer, route: Route, slashes: str) -> None:
    path = real(route.path)
    for method in (route.method, "OPTIONS"):
        headers = {"X-Request-ID": "same"}
        url = server.url + path.rstrip("/") + slashes
        plain = server.client.request(method, path, headers=headers)
        slashed = server.client.request(method, url, headers=headers)
        assert slashed.status_code == plain.status_code != 404
        if route.path != "/metrics":
            assert slashed.content == plain.content


def all_kinds(server: LiveServer) -> list[httpx.Response]:
    """A response of every route, good ones and bad ones, and those of no route."""
    client, chat = server.client, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    requests = [client.build_request(r.method, real(r.path)) for r in ROUTES]
    requests += [
        client.build_request("POST", "/v1/chat/completions", json=chat),
        client.build_request("POST", "/v1/chat/completions", json={**chat, "stream": True}),
        client.build_request("POST", "/v1/messages", json=chat),
        client.build_request("POST", "/v1/messages", json={**chat, "stream": True}),
        client.build_request("GET", "/nope"),
        client.build_request("DELETE", "/v1/models"),
        client.build_request("OPTIONS", "/v1/chat/completions"),
        client.build_request("POST", "/v1/completions", content=b"x" * 200_000),
    ]
    return [client.send(request) for request in requests]


def test_headers_of_all_responses(engine: ScriptedEngine) -> None:
    with LiveServer(engine, max_body_bytes=100_000) as server:
        responses = all_kinds(server)
        server.client.headers["X-Request-ID"] = "mine 1/2"
        named = all_kinds(server)
    assert {r.status_code for r in responses} == {200, 204, 400, 404, 405, 413}
    assert len({r.headers["x-request-id"] for r in responses}) == len(responses)
    for response in responses:
        assert re.fullmatch(r"req_[0-9a-f]{24}", response.headers["x-request-id"])
        assert "alt-svc" not in response.headers
    for response in named:
        assert response.headers["x-request-id"] == "mine 1/2"
        is_anthropics = response.url.path.startswith(ANTHROPIC)
        assert response.headers.get("request-id") == ("mine 1/2" if is_anthropics else None)


@pytest.mark.parametrize(
    ("given", "is_taken"),
    [("a", True), ("x" * 128, True), ("x" * 129, False), ("", False), ("é", False)],
)
def test_ids_of_callers_are_checked(server: LiveServer, given: str, is_taken: bool) -> None:
    headers = {b"X-Request-ID": given.encode()}
    response = server.client.get("/health", headers=headers)  # pyright: ignore
    assert (response.headers["x-request-id"] == given) is is_taken


def test_a_head_that_cannot_be_read_has_an_id_too(server: LiveServer) -> None:
    with connected(server) as sock:
        sock.sendall(b"NONSENSE\r\n\r\n")
        answer = read_to_end(sock)
    assert answer.startswith(b"HTTP/1.1 400 ") and b"x-request-id: req_" in answer.lower()


@pytest.mark.parametrize("route", ROUTES, ids=name)
def test_while_loading_every_route_works_or_says_so(engine: ScriptedEngine, route: Route) -> None:
    """What is only known of a loaded model must not be asked of one that is loading."""
    engine.is_ready = False
    engine.start_gate.clear()
    engine.max_model_len = 0  # as the real one says
    bodies = {"/tokenizer/encode": {"prompt": "x"}, "/tokenize": {"prompt": "x"}}
    bodies |= {"/detokenize": {"tokens": [1]}, "/set_log_level": {"log_level": "INFO"}}
    chat = {"messages": [{"role": "user", "content": "x"}]}
    with LiveServer(engine) as server:
        body = bodies.get(route.path, chat) if route.method == "POST" else None
        response = server.client.request(route.method, real(route.path), json=body)
        server._loop.call_soon_threadsafe(engine.start_gate.set)
    assert response.status_code in (200, 503)
    if response.status_code == 503:
        assert "still loading" in response.text
        assert response.headers.get("retry-after", "1") == "1"
    elif route.path != "/worker_status":  # RTP-LLM's schedulers look at `alive` there
        assert '"max_seq_len":0' not in response.text and '"max_model_len":0' not in response.text

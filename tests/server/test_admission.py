"""What is refused by a request's head: pages of other origins, encodings, sizes."""

from __future__ import annotations

import codecs
import gzip
import json
import time
import zlib

import pytest

from server.routes import all_routes
from tests.server.live_server import LiveServer
from tests.server.raw_http import connected, head, read_to_end
from tests.server.scripted_engine import ScriptedEngine

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
PAGE = "https://chat.example.com"
POSTS = sorted({route.path for route in all_routes() if route.method == "POST"})
JSON = {"Content-Type": "application/json"}


def allow_headers(headers: object) -> set[str]:
    return {name for name in dict(headers) if name.startswith("access-control-")}  # pyright: ignore


@pytest.mark.parametrize("origins", [(PAGE, "http://localhost:3000"), ("*",)])
def test_pages_of_allowed_origins(engine: ScriptedEngine, origins: tuple[str, ...]) -> None:
    is_any = origins == ("*",)
    with LiveServer(engine, cors_allow_origins=origins, api_keys=("k",)) as server:
        for path in {route.path.replace("<model_id:path>", "x") for route in all_routes()}:
            preflight = server.client.options(
                path,
                headers={
                    "Origin": PAGE,
                    "Access-Control-Request-Method": "POST",
                    "Access-Control-Request-Headers": "authorization,x-stainless-os",
                },
            )
            assert preflight.status_code == 204
            allowed = preflight.headers
            assert allowed["access-control-allow-origin"] == ("*" if is_any else PAGE)
            assert "POST" in allowed["access-control-allow-methods"]
            assert allowed["access-control-allow-headers"] == "authorization,x-stainless-os"
            assert int(allowed["access-control-max-age"]) > 0
        page = {"Origin": PAGE, "Authorization": "Bearer k"}
        answers = [
            server.client.post(CHAT, json=BODY, headers=page),
            server.client.post(CHAT, json={**BODY, "stream": True}, headers=page),
            server.client.post(CHAT, json={}, headers=page),
            server.client.get("/v1/models", headers=page),
            server.client.get("/nope", headers=page),
            server.client.get("/v1/models", headers={"Origin": PAGE}),
            server.client.post(CHAT, content=b"{}", headers={**page, "Content-Encoding": "br"}),
        ]
        assert [a.status_code for a in answers] == [200, 200, 400, 200, 404, 401, 415]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == ("*" if is_any else PAGE)
            assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
            assert answer.headers.get("vary") == (None if is_any else "Origin")
        others = [
            server.client.get("/health"),
            server.client.get("/health", headers={"Origin": "https://evil.example"}),
        ]
        for other in others if not is_any else []:
            assert not allow_headers(other.headers)
            assert other.headers["vary"] == "Origin"


@pytest.mark.parametrize("origin", [PAGE, "null", "http://localhost:3000"])
def test_without_a_list_no_page_is_allowed(server: LiveServer, origin: str) -> None:
    for method, path in (("OPTIONS", CHAT), ("GET", "/v1/models"), ("POST", CHAT)):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = server.client.request(method, path, headers=headers)
        assert not allow_headers(answer.headers)
        assert "vary" not in answer.headers


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "kind", [None, "text/plain", "text/plain; charset=utf-8", "application/x-www-form-urlencoded"]
)
def test_a_foreign_page_cannot_send_without_asking(
    server: LiveServer, path: str, kind: str | None
) -> None:
    """These types need no preflight, so the browser sends the body whatever the answer."""
    headers = {"Origin": "https://evil.example"} | ({"Content-Type": kind} if kind else {})
    refused = server.client.post(path, content=json.dumps(BODY), headers=headers)
    assert refused.status_code == 415
    assert "application/json" in refused.text and "CORS_ALLOW_ORIGINS" in refused.text
    own = headers | {"Origin": server.url}
    assert server.client.post(path, content=b"{}", headers=own).status_code != 415


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "application/json",
        "application/json; charset=UTF-8",
        'application/json; charset="utf-8"',
        "application/vnd.api+json",
        "text/plain",
        "application/x-www-form-urlencoded",  # curl -d
    ],
)
def test_clients_that_are_no_pages_may_call_it_what_they_like(
    server: LiveServer, kind: str | None
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = server.client.post(CHAT, content=json.dumps(BODY), headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"Content-Encoding": "deflate"}, {"accept-encoding": "gzip, identity"}),
        ({"Content-Encoding": "x, gzip"}, {"accept-encoding": "gzip, identity"}),
        ({"Content-Encoding": "gzip, gzip"}, {"accept-encoding": "gzip, identity"}),
        ({"Content-Encoding": "zstd"}, {"accept-encoding": "gzip, identity"}),
        ({"Content-Type": "multipart/form-data; boundary=x"}, {"accept": "application/json"}),
        ({"Content-Type": "application/xml"}, {"accept": "application/json"}),
        ({"Content-Type": "application/json; charset=utf-16"}, {}),
    ],
)
def test_what_is_not_read_here_is_a_415(
    server: LiveServer, path: str, headers: dict[str, str], told: dict[str, str]
) -> None:
    body = gzip.compress(json.dumps(BODY).encode())
    refused = server.client.post(path, content=body, headers=JSON | headers)
    assert refused.status_code == 415
    assert refused.headers["content-type"] == "application/json"
    assert {name: refused.headers[name] for name in told} == told
    same = server.client.post(path, content=b"{}", headers=JSON | {"Content-Encoding": "identity"})
    assert same.status_code in (200, 400)


GZIP = {**JSON, "Content-Encoding": "gzip"}


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZip"])
@pytest.mark.parametrize("num_chars", [1, 100_000])
def test_a_gzip_body_is_read_as_what_it_holds(
    server: LiveServer, encoding: str, num_chars: int
) -> None:
    body = json.dumps({"prompt": "a" * num_chars}).encode()
    headers = {**JSON, "Content-Encoding": encoding}
    answer = server.client.post("/tokenize", content=gzip.compress(body), headers=headers)
    assert answer.json()["count"] == num_chars
    assert server.held_body_bytes == 0


def test_what_a_gzip_body_inflates_to_is_bounded(engine: ScriptedEngine) -> None:
    with LiveServer(engine, max_body_bytes=1_000_000, max_bodies_bytes=2_500_000) as server:
        most = b'{"prompt": "' + b" " * 999_986 + b'"}'
        answer = server.client.post("/tokenize", content=gzip.compress(most), headers=GZIP)
        assert answer.json()["count"] == 999_986
        for size in (1_000_001, 100_000_000):
            parts = zlib.compressobj(wbits=31)
            pieces = (parts.compress(b" " * 1_000_000) for _ in range(size // 1_000_000))
            bomb = b"".join([*pieces, parts.compress(b" " * (size % 1_000_000)), parts.flush()])
            refused = server.client.post(CHAT, content=bomb, headers=GZIP)
            assert refused.status_code == 413
            assert "MAX_BODY_MB" in refused.json()["error"]["message"]
        assert server.held_body_bytes == 0


def test_a_body_that_is_no_gzip_is_a_400(server: LiveServer) -> None:
    good = gzip.compress(json.dumps(BODY).encode())
    for body in (b"{}", good[:-1], good[:5], good + b"x", good + good, good[:-8] + b"x" * 8):
        refused = server.client.post(CHAT, content=body, headers=GZIP)
        assert refused.status_code == 400
        assert "gzip" in refused.json()["error"]["message"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_of_text_are_named(server: LiveServer, encoding: str) -> None:
    refused = server.client.post(CHAT, content=json.dumps(BODY).encode(encoding), headers=JSON)
    assert refused.status_code == 400
    assert "UTF-8" in refused.json()["error"]["message"]
    assert f"UTF-{encoding[4:6]}" in refused.json()["error"]["message"]


def test_a_mark_of_utf_8_is_skipped(server: LiveServer) -> None:
    body = codecs.BOM_UTF8 + json.dumps(BODY).encode()
    assert server.client.post(CHAT, content=body, headers=JSON).status_code == 200


@pytest.mark.parametrize("path", POSTS)
def test_a_body_over_the_limit_is_not_asked_for(server: LiveServer, path: str) -> None:
    with connected(server) as sock:
        started = time.monotonic()
        sock.sendall(head("POST", path, Content_Length=10**12, Expect="100-continue"))
        answer = sock.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"MAX_BODY_MB" in answer
    assert time.monotonic() - started < 2


def test_a_body_that_is_taken_is_asked_for(server: LiveServer) -> None:
    body = json.dumps(BODY).encode()
    with connected(server) as sock:
        fields = {"Content_Length": len(body), "Expect": "100-continue", "Connection": "close"}
        sock.sendall(head("POST", CHAT, **fields))
        assert sock.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_to_end(sock).startswith(b"HTTP/1.1 200 ")


def test_a_chunked_body_over_the_limit(engine: ScriptedEngine) -> None:
    with LiveServer(engine, max_body_bytes=100_000) as server, connected(server) as sock:
        sock.sendall(head("POST", CHAT, Transfer_Encoding="chunked"))
        for _ in range(30):
            sock.sendall(b"2710\r\n" + b" " * 10_000 + b"\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 413 ")
        assert server.held_body_bytes == 0


def test_a_head_over_the_limit(server: LiveServer) -> None:
    for sent in (head("GET", "/health", X="y" * 20_000), b"GET /" + b"x" * 100_000):
        with connected(server) as sock:
            sock.sendall(sent)
            answer = read_to_end(sock)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b'"code": "request_head_too_large"' in answer

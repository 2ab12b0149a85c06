"""What the front adds to a request, and how it says that a stream has lost its replica."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="needs pip install rtpjax[ray]")

from starlette.requests import Request

from server.errors import HttpError
from server.replicas.front import _failure, _forwarded
from server.routes import all_routes

LOST = HttpError(500, "the replica was lost", code="replica_lost", request_id="the-id")
PATHS = sorted({route.path for route in all_routes() if route.method == "POST"})


def request(client: tuple[str, int] | None, **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw, "client": client})


@pytest.mark.parametrize(
    ("host", "is_here"), [("127.0.0.1", True), ("::1", True), ("10.1.2.3", False), (None, False)]
)
def test_a_replica_is_told_of_callers_from_elsewhere(host: str | None, is_here: bool) -> None:
    client = None if host is None else (host, 1)
    headers = _forwarded(request(client, accept="*/*"), "the-id")
    assert ("accept", "*/*") in headers
    assert ("x-forwarded-for" in dict(headers)) is not is_here


def test_a_replica_gets_one_id() -> None:
    headers = _forwarded(request(("::1", 1), x_request_id="bad\x80id"), "the-id")
    assert [value for name, value in headers if name == "x-request-id"] == ["the-id"]


def data_of(event: bytes) -> list[Any]:
    lines = [line for line in event.decode().splitlines() if line.startswith("data:")]
    texts = [line.removeprefix("data:").strip() for line in lines]
    return [text if text.lower() == "[done]" else json.loads(text) for text in texts]


@pytest.mark.parametrize("path", PATHS)
def test_a_lost_stream_ends_as_its_api_says(path: str) -> None:
    first, *rest = data_of(_failure(path, LOST))
    assert LOST.message in json.dumps(first)
    if path.startswith("/v1/messages"):
        assert (first["type"], first["request_id"], rest) == ("error", "the-id", [])
    elif path.endswith("/responses"):
        assert (first["type"], first["code"], rest) == ("error", "replica_lost", [])
    else:
        assert first["error"]["code"] == "replica_lost"
        assert rest == (["[done]"] if path in ("/", "/batch_infer") else ["[DONE]"])

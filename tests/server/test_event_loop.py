"""Probes are answered at once while bodies of any size and shape are prepared."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.server.live_server import LiveServer
from tests.server.scripted_engine import ScriptedEngine

SIZE = 16 * 1024 * 1024 - 1000
MOST_S = 0.1
WATCHED_S = 0.7


def filled(head: bytes, item: bytes, tail: bytes) -> bytes:
    """A body of 16 MB with one item again and again."""
    return head + b",".join([item] * ((SIZE - len(head) - len(tail)) // (len(item) + 1))) + tail


USER = b'{"messages":[{"role":"user","content":'
SHAPES = {
    # What json.loads, pydantic, the tokenizer, the encoder of an answer keep Python's lock for.
    "objects": ("/v1/chat/completions", filled(b'{"messages":[', b"{}", b"]}")),
    "numbers": ("/detokenize", filled(b'{"tokens":[', b"7", b"]}")),
    "text": ("/tokenize", b'{"prompt":"' + b"x y " * (SIZE // 4) + b'"}'),
    "escapes": ("/v1/chat/completions", USER + b'"' + rb"\u00e9" * (SIZE // 6) + b'"}]}'),
    "parts": (
        "/v1/chat/completions",
        USER + filled(b"[", b'{"type":"text","text":"a"}', b"]") + b"}]}",
    ),
    "repeated": ("/v1/responses", filled(b'{"input":"x","metadata":{"a":[', b"[]", b"]}}")),
    "broken": ("/v1/chat/completions", b'{"messages":' + b"[" * SIZE),
}


@pytest.fixture(scope="module")
def roomy() -> Iterator[LiveServer]:
    engine = ScriptedEngine()
    engine.max_model_len = 2**24
    with LiveServer(engine) as server:
        yield server


@pytest.mark.parametrize("shape", SHAPES)
def test_liveness_while_16_mb_are_prepared(roomy: LiveServer, shape: str) -> None:
    path, body = SHAPES[shape]
    # (A machine with other work to do can be late by itself.)
    tries: list[float] = []
    while min(tries, default=MOST_S) >= MOST_S and len(tries) < 5:
        tries.append(_slowest_probe(roomy, path, body))
    assert min(tries) < MOST_S


def _slowest_probe(server: LiveServer, path: str, body: bytes) -> float:
    """Seconds that the slowest of the probes took that were sent meanwhile."""
    probes = http.client.HTTPConnection("127.0.0.1", server.port)
    slowest, sent = 0.0, threading.Event()

    def send() -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(head.encode())
            sock.sendall(body)
            sent.set()
            sock.settimeout(WATCHED_S)
            with contextlib.suppress(TimeoutError):
                sock.recv(1)

    sender = threading.Thread(target=send)
    sender.start()
    while sender.is_alive():
        started = time.perf_counter()
        probes.request("GET", "/liveness")
        assert probes.getresponse().read() == b'"ok"'
        slowest = max(slowest, time.perf_counter() - started)
        time.sleep(0.002)
    assert sent.is_set()
    probes.close()
    return slowest

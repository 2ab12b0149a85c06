"""Clients that half-close, stall, or are too many."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest

from tests.server.live_server import LiveServer, wait_until
from tests.server.raw_http import connected, head, read_to_end
from tests.server.scripted_engine import ScriptedEngine

CHAT = "/v1/chat/completions"


def request(*, stream: bool, max_tokens: int = 20, **fields: object) -> bytes:
    messages = [{"role": "user", "content": "hi"}]
    body = {"messages": messages, "stream": stream, "max_tokens": max_tokens, **fields}
    content = json.dumps(body).encode()
    return head("POST", CHAT, Content_Length=len(content)) + content


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("delay_s", [0.0, 0.1])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_client_that_ends_its_side_gets_its_answer(
    engine: ScriptedEngine, stream: bool, delay_s: float, is_late: bool
) -> None:
    engine.delay_s = delay_s
    with LiveServer(engine) as server, connected(server) as sock:
        sock.sendall(request(stream=stream))
        if is_late:
            wait_until(lambda: bool(engine.seen))
        sock.shutdown(socket.SHUT_WR)
        answer = read_to_end(sock)
        wait_until(lambda: server.num_connections == 1)  # of the test's own client
    while answer.startswith(b"HTTP/1.1 100 "):
        answer = answer.partition(b"\r\n\r\n")[2]
    assert answer.startswith(b"HTTP/1.1 200 ")
    if delay_s:
        assert b"connection: close" in answer.lower()
    assert answer.endswith(b"[DONE]\n\n\r\n0\r\n\r\n" if stream else b"}")
    assert not engine.aborted


def test_requests_that_were_sent_before_the_end_are_all_answered(server: LiveServer) -> None:
    with connected(server) as sock:
        sock.sendall(request(stream=False) * 3)
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock).count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize("sent", [b"", b"POST / HTT", head("POST", CHAT, Content_Length=99) + b"{"])
def test_half_a_request_ends_with_its_client(server: LiveServer, sent: bytes) -> None:
    with connected(server) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        started = time.monotonic()
        read_to_end(sock)
    assert time.monotonic() - started < 2


def test_half_closed_and_then_gone(engine: ScriptedEngine) -> None:
    engine.delay_s = 0.05
    with LiveServer(engine) as server, connected(server) as sock:
        sock.sendall(request(stream=False, max_tokens=400))
        sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: bool(engine.running))
        time.sleep(1)
        assert engine.running
        sock.close()
        wait_until(lambda: not engine.running, timeout_s=5)
        assert len(engine.aborted) == 1


def heavy(*, max_tokens: int = 480) -> bytes:
    """A stream of some 8 MB: more than an operating system keeps for a client."""
    return request(stream=True, max_tokens=max_tokens, n=8, logprobs=True, top_logprobs=20)


def test_a_client_that_stops_reading_is_cut_off(engine: ScriptedEngine) -> None:
    engine.delay_s = 0.02
    with LiveServer(engine, write_timeout_s=1) as server:
        with connected(server, receive_buffer=4096) as sock:
            sock.sendall(heavy())
            assert sock.recv(1024).startswith(b"HTTP/1.1 200 ")
            wait_until(lambda: len(engine.running) == 8)
            wait_until(lambda: not engine.running and server.num_connections == 1, timeout_s=8)
            assert len(engine.aborted) == 8
        engine.delay_s = 0
        assert server.chat(max_tokens=2).status_code == 200


def test_a_whole_answer_that_is_not_read(engine: ScriptedEngine) -> None:
    with LiveServer(engine, write_timeout_s=1) as server:
        with connected(server, receive_buffer=4096) as sock:
            fields = {"n": 4, "logprobs": True, "top_logprobs": 20}
            sock.sendall(request(stream=False, max_tokens=480, **fields))
            wait_until(lambda: len(engine.seen) == 4 and not engine.running)
            wait_until(lambda: server.num_connections == 1, timeout_s=20)
        assert server.chat(max_tokens=2).status_code == 200


def test_a_slow_reader_is_not_cut_off(engine: ScriptedEngine) -> None:
    with LiveServer(engine, write_timeout_s=1) as server:
        with connected(server, receive_buffer=65536) as sock:
            sock.sendall(heavy(max_tokens=200))
            size, tail = 0, b""
            while not tail.endswith(b"0\r\n\r\n"):  # about 400 kB a second
                piece = sock.recv(40_000)
                assert piece, "it was cut off"
                size, tail = size + len(piece), (tail + piece)[-16:]
                time.sleep(0.1 if size < 1_200_000 else 0)
        assert size > 1_500_000
        assert not engine.aborted


def test_connections_over_the_limit(engine: ScriptedEngine) -> None:
    with LiveServer(engine, max_connections=4) as server:
        with connected(server), connected(server), connected(server):
            wait_until(lambda: server.num_connections == 4)
            with connected(server) as sock:
                answer = read_to_end(sock)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"MAX_CONNECTIONS" in answer
            assert server.client.get("/health").status_code == 200
        wait_until(lambda: server.num_connections < 4)
        with httpx.Client(base_url=server.url) as other:
            assert other.get("/health").status_code == 200


def test_bodies_over_what_all_may_hold(engine: ScriptedEngine) -> None:
    with LiveServer(engine, max_bodies_bytes=1_000_000) as server, connected(server) as sock:
        sock.sendall(head("POST", CHAT, Content_Length=700_000) + b" " * 600_000)
        wait_until(lambda: server.held_body_bytes == 600_000)
        refused = server.chat(user="x" * 600_000, max_tokens=1)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "overloaded"
        assert "MAX_BODIES_MB" in refused.text and refused.headers["retry-after"] == "1"
        assert server.chat(max_tokens=1).status_code == 200
        sock.close()
        wait_until(lambda: server.held_body_bytes == 0)
        assert server.chat(user="x" * 600_000, max_tokens=1).status_code == 200


def test_a_body_is_not_held_while_it_is_answered(engine: ScriptedEngine) -> None:
    engine.delay_s = 0.02
    with LiveServer(engine) as server, connected(server) as sock:
        sock.sendall(request(stream=True, max_tokens=400, user="x" * 1_000_000))
        wait_until(lambda: bool(engine.running))
        assert server.held_body_bytes == 0

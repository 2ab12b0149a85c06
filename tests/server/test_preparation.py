"""Requests are prepared off the event loop, in bounded lanes, and only while somebody waits."""

from __future__ import annotations

import ast
import asyncio
import gc
import threading
import weakref
from pathlib import Path

import pytest

import server
from rtpjax.errors import QueueFullError, RequestTimeoutError
from server.lanes import Lane, LaneSize
from server.protocol.body import load_object
from server.routes import all_routes, body_of


class Gate:
    """Work that is held up until the gate opens."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.opened = threading.Event()

    def __call__(self, _: object = None) -> str:
        self.begun.set()
        assert self.opened.wait(10)
        return "done"


async def held_up(lane: Lane, gate: Gate, num_bytes: int = 1) -> asyncio.Task[str]:
    """A task whose work has begun and does not end."""
    task = asyncio.create_task(lane.run(gate, num_bytes, 10))
    await asyncio.to_thread(gate.begun.wait, 10)
    return task


def test_at_most_so_many_requests() -> None:
    async def scenario() -> None:
        lane, gate = Lane("test", LaneSize(1, 2, 100)), Gate()
        first = await held_up(lane, gate)
        second = asyncio.create_task(lane.run(lambda _: "second", 1, 10))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="busy: 2 requests are being prepared"):
            await lane.run(lambda _: "third", 1, 10)
        gate.opened.set()
        assert [await first, await second] == ["done", "second"]
        assert await lane.run(lambda _: "third", 1, 10) == "third"

    asyncio.run(scenario())


def test_at_most_so_many_bytes() -> None:
    async def scenario() -> None:
        lane, gate = Lane("test", LaneSize(2, 10, 100)), Gate()
        first = await held_up(lane, gate, num_bytes=60)
        with pytest.raises(QueueFullError):
            await lane.run(lambda _: "second", 41, 10)
        assert await lane.run(lambda _: "second", 40, 10) == "second"
        gate.opened.set()
        await first
        # The operator allows bodies of this size: one at a time has to pass.
        assert await lane.run(lambda _: "large", 1000, 10) == "large"

    asyncio.run(scenario())


def test_who_leaves_takes_waiting_work_along() -> None:
    class Body:
        pass

    async def scenario() -> None:
        lane, gate, begun = Lane("test", LaneSize(1, 2, 100)), Gate(), list[Body]()
        first = await held_up(lane, gate)
        body = Body()
        is_kept = weakref.ref(body)
        leaving = asyncio.create_task(lane.run(lambda _, body=body: begun.append(body), 99, 10))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        del leaving, body
        gc.collect()
        assert is_kept() is None  # though the thread has not come to it yet
        second = asyncio.create_task(lane.run(lambda _: "second", 99, 10))  # there is room again
        gate.opened.set()
        assert [await first, await second] == ["done", "second"]
        assert not begun

    asyncio.run(scenario())


def test_time_limit() -> None:
    async def scenario() -> None:
        lane, gate, begun = Lane("test", LaneSize(1, 3, 100)), Gate(), list[str]()
        running = asyncio.create_task(lane.run(gate, 1, 0.1))
        waiting = asyncio.create_task(lane.run(lambda _: begun.append("late"), 1, 0.1))
        with pytest.raises(RequestTimeoutError, match=r"took longer than 0\.1 s"):
            await running
        with pytest.raises(QueueFullError, match=r"no turn for 0\.1 s; try again later"):
            await waiting
        gate.opened.set()
        assert await lane.run(lambda _: "next", 98, 10) == "next"
        assert not begun

    asyncio.run(scenario())


def test_bodies_cannot_be_read_on_the_event_loop() -> None:
    async def on_the_loop() -> None:
        load_object(b"{}")

    assert load_object(b"{}") == {}
    with pytest.raises(AssertionError, match="never on the event loop"):
        asyncio.run(on_the_loop())


def test_no_route_gets_at_a_body_by_itself() -> None:
    """Handlers have the request; only `takes` may read its body, and hands it to the lanes."""
    readers = set()
    folder = Path(server.__path__[0])
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or node.attr not in _BODY_ATTRIBUTES:
                continue
            if isinstance(node.value, ast.Name) and "request" in node.value.id:
                readers.add(path.relative_to(folder).as_posix())
    # (A replica passes bytes on.)
    assert readers == {"routes/__init__.py", "replicas/replica.py"}


_BODY_ATTRIBUTES = ("body", "json", "form", "files", "load_json", "receive_body")

# They are asked with POST as well, and look at no body.
BODYLESS = {"/worker_status", "/cache_status", "/ping"}


def test_every_post_route_is_prepared() -> None:
    for method, path, handler, *_ in all_routes():
        is_prepared = body_of(handler) is not None
        assert is_prepared == (method == "POST" and path not in BODYLESS), path

"""What fails again and again between the event loop and the engine's thread."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import Any

import pytest

from rtpjax.engine import async_engine
from rtpjax.engine.async_engine import AsyncLLMEngine
from rtpjax.engine.request import GenerationRequest
from rtpjax.engine.thread import ThreadLink
from rtpjax.errors import DrainingError, EngineError, QueueFullError, RequestError
from tests.rtpjax.engine import tiny
from tests.rtpjax.engine.test_async_engine import (
    Gate,
    collect,
    request,
    running,
    until,
    within_time,
)
from tests.rtpjax.engine.tiny import prompt

PROMPTS = [prompt(n, n) for n in (1, 5, 9, 20)]


@pytest.fixture
def engine(runner):
    return tiny.make_engine(runner, use_prefix_cache=False)


@pytest.fixture(scope="module")
def expected(compiled) -> list[list[int]]:
    compiled.reset()
    return tiny.generate(tiny.make_engine(compiled), PROMPTS)


def fail_on(monkeypatch, owner: Any, name: str, when) -> list[int]:
    """Makes a method raise where `when(number of the call, arguments)`; returns a list to count."""
    original, calls, failed = getattr(owner, name), [], []

    def call(*args, **options):
        calls.append(1)
        if when(len(calls), args):
            failed.append(len(calls))
            raise RuntimeError("injected")
        return original(*args, **options)

    monkeypatch.setattr(owner, name, call)
    return failed


async def ended(served: AsyncLLMEngine, asked: GenerationRequest) -> tuple[list[int], str | None]:
    """Tokens of a request, and the error that it ended with or was refused with."""
    try:
        outputs = await collect(served.generate(asked))
    except (EngineError, DrainingError) as error:
        return [], str(error)
    assert [o.finish_reason for o in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert outputs[-1].finish_reason is not None
    return tiny.tokens_of(outputs), outputs[-1].error


def is_bad(args: tuple[Any, ...]) -> bool:
    return any(getattr(arg, "request_id", arg) == "bad" for arg in args)


@pytest.mark.parametrize("name", ["check", "add"])
def test_what_fails_for_one_message_ends_that_request_alone(
    engine, expected, monkeypatch, caplog, name
):
    where = (engine, name) if name == "add" else (async_engine, "check_request")
    failed = fail_on(monkeypatch, *where, lambda n, args: is_bad(args))

    async def main():
        async with running(engine) as served:
            for _ in range(4):  # one after the other: it is not taken for the engine's failure
                bad = request("bad")
                tasks = [ended(served, request(f"{i}", p)) for i, p in enumerate(PROMPTS)]
                (_, error), *found = await asyncio.gather(ended(served, bad), *tasks)
                assert "(error " in error
                assert "injected" not in error
                assert found == [(tokens, None) for tokens in expected]
            assert served.is_ready
            await until(lambda: not engine.has_work)
            assert engine.stats().num_free_pages == engine.stats().num_pages

    within_time(main())
    assert len(failed) == 4
    assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) == 4


def test_an_abort_that_fails_ends_no_other_request(engine, expected, monkeypatch, caplog):
    failed = fail_on(monkeypatch, engine, "abort", lambda n, args: True)

    async def main():
        async with running(engine) as served:
            stream = served.generate(request("bad", prompt(5), max_tokens=30))
            await anext(stream)
            await stream.aclose()
            found = await asyncio.gather(
                *(ended(served, request(f"{i}", p)) for i, p in enumerate(PROMPTS))
            )
            assert found == [(tokens, None) for tokens in expected]
            await until(lambda: not engine.has_work)  # it ran out
            assert engine.stats().num_free_pages == engine.stats().num_pages
            assert served.is_ready

    within_time(main())
    assert len(failed) == 1
    assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) == 1


@pytest.mark.parametrize("name", ["add", "step", "wait"])
def test_what_always_fails_is_told_and_ends_the_engine(engine, monkeypatch, caplog, name):
    fail_on(monkeypatch, engine, name, lambda n, args: True)

    async def main():
        async with running(engine) as served:
            found = await asyncio.gather(*(ended(served, request(f"{i}")) for i in range(4)))
            assert all(error for _, error in found) or name == "wait"
            await until(lambda: served.failure is not None)
            assert not served.is_ready
            assert "injected" not in served.failure
            with pytest.raises(DrainingError, match="has stopped"):
                served.generate(request("later"))

    within_time(main())
    assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) < 20


def test_a_thread_that_ends_by_itself_is_a_failure(engine, monkeypatch):
    def leave():
        raise SystemExit

    monkeypatch.setattr(engine, "step", leave)

    async def main():
        async with running(engine) as served:
            _, error = await ended(served, request("a"))
            assert "has failed" in error
            assert served.failure is not None

    within_time(main())


@pytest.mark.parametrize("times", [1, 2])
def test_calls_that_the_event_loop_refuses_now_and_then_are_made_again(engine, expected, times):
    async def main():
        async with running(engine) as served:
            calls = itertools.count()
            served._link._event_loop = loop = Loop(
                served._link._event_loop, lambda: next(calls) % 4 < times
            )
            found = await asyncio.gather(
                *(ended(served, request(f"{i}", p)) for i, p in enumerate(PROMPTS))
            )
            assert found == [(tokens, None) for tokens in expected]
            assert served.is_ready
            assert loop.num_refused

    within_time(main())


class Loop:
    """An event loop that refuses calls of other threads where `when()`."""

    def __init__(self, loop, when):
        self._loop, self._when = loop, when
        self.num_refused = 0

    def call_soon_threadsafe(self, *args):
        if self._when():
            self.num_refused += 1
            raise RuntimeError("injected")
        return self._loop.call_soon_threadsafe(*args)

    def is_closed(self):
        return self._loop.is_closed()


def test_an_event_loop_that_takes_no_calls_ends_the_thread(engine, caplog):
    async def main():
        async with running(engine) as served:
            served._link._event_loop = loop = Loop(served._link._event_loop, lambda: True)
            task = asyncio.create_task(ended(served, request("a")))
            await until(lambda: served.failure is not None)
            assert not served.is_ready
            assert loop.num_refused < 20
            await served.stop()  # as the server does then
            assert "has failed" in (await task)[1]

    within_time(main())
    assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) < 20


def test_a_closed_event_loop_ends_the_thread(engine, monkeypatch):
    gate = Gate(engine, monkeypatch)
    threads = []

    async def main():
        served = AsyncLLMEngine(ThreadLink(lambda _: engine), tiny.tokenizer(), "tiny")
        await served.start()
        threads.append(served._link._thread)
        stream = served.generate(request())
        asking = asyncio.ensure_future(anext(stream))
        await asyncio.to_thread(gate.is_waiting.wait)
        asking.cancel()

        served._link.send([request("nobody waits for it")])
        gate.open()

    within_time(main())
    threads[0].join(20)
    assert not threads[0].is_alive()


def test_a_failed_engine_ends_all_and_says_so(engine, runner, monkeypatch):
    """Requests that wait, run and arrive; each hears of it once."""
    fail_on(monkeypatch, runner, "forward", lambda n, _: n > 5)

    async def main():
        async with running(engine) as served:
            found = await asyncio.gather(*(ended(served, request(f"{i}")) for i in range(12)))
            assert all("has failed" in error for _, error in found)
            assert served.failure == engine.failure
            assert not engine.has_work

    within_time(main())


def test_an_id_in_use_is_refused(engine, monkeypatch):
    gate = Gate(engine, monkeypatch)

    async def main():
        async with running(engine, gate) as served:
            first = asyncio.create_task(collect(served.generate(request("same"))))
            await asyncio.to_thread(gate.is_waiting.wait)
            with pytest.raises(RequestError, match="'same' is in use"):
                served.generate(request("same"))
            gate.open()
            assert (await first)[-1].finish_reason == "length"

    within_time(main())


def test_the_queue_limit_holds_for_requests_checked_together(runner, monkeypatch):
    """Each passes generate(), which none has been sent from yet."""
    engine = tiny.make_engine(runner, max_num_waiting=3)
    gate = Gate(engine, monkeypatch)

    async def main():
        async with running(engine, gate) as served:
            streams = [served.generate(request(f"{i}")) for i in range(9)]
            tasks = [asyncio.create_task(collect(stream)) for stream in streams]
            await asyncio.to_thread(gate.is_waiting.wait)
            gate.open()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert sum(isinstance(outputs, list) for outputs in found) == 3
            assert sum(isinstance(outputs, QueueFullError) for outputs in found) == 6
            assert served._num_sent == served._num_taken

    within_time(main())


def test_the_time_before_the_engine_counts(engine, monkeypatch):
    """In the inbox, or wherever a request was since it arrived."""

    async def main():
        async with running(engine) as served:
            arrived_s = time.monotonic() - 5
            for timeout_s, kind in ((4.0, "timeout"), (60.0, "engine")):
                asked = GenerationRequest(
                    "r", prompt(3), tiny.GREEDY, timeout_s=timeout_s, arrived_s=arrived_s
                )
                outputs = await collect(served.generate(asked))
                assert outputs[-1].error_kind == kind
                assert (outputs[-1].error is None) == (kind == "engine")
            assert outputs[0].wait_s >= 5

    within_time(main())

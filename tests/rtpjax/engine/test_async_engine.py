from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from rtpjax.engine.async_engine import AsyncLLMEngine
from rtpjax.engine.request import GenerationRequest
from rtpjax.engine.thread import ThreadLink
from rtpjax.errors import DrainingError, QueueFullError, RequestError
from tests.rtpjax.engine import tiny
from tests.rtpjax.engine.tiny import params, prompt

TIMEOUT_S = 30


@contextlib.asynccontextmanager
async def running(engine, gate=None):
    served = AsyncLLMEngine(ThreadLink(lambda _: engine), tiny.tokenizer(), "tiny")
    await served.start()
    try:
        yield served
    finally:
        if gate is not None:
            gate.open()
        await served.stop()


def request(request_id="r", prompt_token_ids=None, **options) -> GenerationRequest:
    return GenerationRequest(request_id, prompt_token_ids or prompt(9), params(**options))


async def collect(outputs):
    return [output async for output in outputs]


def within_time(coroutine):
    """Runs a coroutine; what hangs fails."""

    async def limited():
        async with asyncio.timeout(TIMEOUT_S):
            return await coroutine

    return asyncio.run(limited())


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.005)


class Gate:
    """Lets an engine's steps through only while it is open."""

    def __init__(self, engine, monkeypatch):
        self._open = threading.Event()
        self.is_waiting = threading.Event()
        step = engine.step

        def gated():
            self.is_waiting.set()
            assert self._open.wait(TIMEOUT_S)
            return step()

        monkeypatch.setattr(engine, "step", gated)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def engine(runner):
    return tiny.make_engine(runner, use_prefix_cache=False)


def test_concurrent_requests_get_their_own_tokens(engine, runner):
    prompts = [prompt(n, n) for n in (1, 5, 9, 20, 33, 40, 12, 13)]
    expected = tiny.generate(tiny.make_engine(runner), prompts)

    async def main():
        async with running(engine) as served:
            requests = [request(f"{i}", p) for i, p in enumerate(prompts)]
            found = await asyncio.gather(*(collect(served.generate(r)) for r in requests))
            assert served.stats().num_output_tokens == 12 * len(prompts)
            return found

    for outputs, tokens in zip(within_time(main()), expected, strict=True):
        tiny.assert_ends_once(outputs)
        assert tiny.tokens_of(outputs) == tokens
        assert "".join(o.text for o in outputs) == tiny.text_of(tokens)


def test_what_the_server_reads_of_it(engine):
    async def main():
        before = time.time()
        served = AsyncLLMEngine(ThreadLink(lambda _: engine), tiny.tokenizer(), "tiny")
        assert before - 1 <= served.created <= time.time()
        assert (served.model_name, served.max_model_len, served.is_ready) == ("tiny", 0, False)
        assert served.stats().num_pages == 0
        await served.start()
        assert (served.max_model_len, served.is_ready, served.is_draining) == (64, True, False)
        assert served.stats().num_pages == 999
        await served.stop()
        assert not served.is_ready

    within_time(main())


def test_closing_a_stream_aborts_and_frees_its_pages(engine):
    async def main():
        async with running(engine) as served:
            stream = served.generate(request("closed", prompt(5), max_tokens=59))
            other = asyncio.create_task(collect(served.generate(request("other"))))
            assert (await anext(stream)).finish_reason is None
            await stream.aclose()
            tiny.assert_ends_once(await other)
            await until(lambda: not engine.has_work)
            assert engine.stats().num_free_pages == engine.stats().num_pages
            # Far fewer than its 59 tokens were made.
            assert engine.stats().num_output_tokens < 59 + 12

    within_time(main())


def test_a_cancelled_consumer_aborts_before_the_first_token(engine, monkeypatch):
    gate = Gate(engine, monkeypatch)

    async def main():
        async with running(engine, gate) as served:
            task = asyncio.create_task(collect(served.generate(request(max_tokens=50))))
            await asyncio.to_thread(gate.is_waiting.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.open()
            await until(lambda: not engine.has_work)
            assert engine.stats().num_free_pages == engine.stats().num_pages
            assert engine.stats().num_output_tokens <= 2

    within_time(main())


def test_drain_lets_running_requests_end_and_refuses_new_ones(engine, monkeypatch):
    gate = Gate(engine, monkeypatch)

    async def main():
        async with running(engine, gate) as served:
            task = asyncio.create_task(collect(served.generate(request())))
            await asyncio.to_thread(gate.is_waiting.wait)
            draining = asyncio.create_task(served.drain(TIMEOUT_S))
            await until(lambda: served.is_draining)
            assert not served.is_ready
            with pytest.raises(DrainingError, match="shutting down"):
                served.generate(request("late"))
            assert not draining.done()
            gate.open()
            await draining
            assert (await task)[-1].finish_reason == "length"

    within_time(main())


def test_a_failure_outside_ends_all_requests_though_the_thread_hangs(engine, monkeypatch):
    gate = Gate(engine, monkeypatch)

    async def main():
        async with running(engine, gate) as served:
            tasks = [asyncio.create_task(collect(served.generate(request(f"{i}")))) for i in (0, 1)]
            await asyncio.to_thread(gate.is_waiting.wait)
            await asyncio.to_thread(served._link.engine_loop.fail, "process 1 has been silent")
            for task in tasks:
                (output,) = await task
                assert output.finish_reason == "error"
                assert output.error is not None
                assert "process 1 has been silent" in output.error
            assert not served.is_ready
            with pytest.raises(DrainingError, match="process 1 has been silent"):
                served.generate(request("late"))

    within_time(main())


def test_drain_ends_with_its_time_and_stop_ends_what_is_left(engine, monkeypatch, caplog):
    gate = Gate(engine, monkeypatch)

    async def main():
        async with running(engine, gate) as served:
            task = asyncio.create_task(collect(served.generate(request(max_tokens=50))))
            await asyncio.to_thread(gate.is_waiting.wait)
            await served.drain(0.1)
            stopping = asyncio.create_task(served.stop())
            await asyncio.sleep(0.05)
            gate.open()
            await stopping
            [*_, output] = await task
            assert output.finish_reason == "error"
            assert "stopped before" in output.error

    within_time(main())
    assert "1 requests did not end" in caplog.text


def test_requests_are_refused_before_start_and_after_stop(engine):
    async def main():
        served = AsyncLLMEngine(ThreadLink(lambda _: engine), tiny.tokenizer(), "tiny")
        with pytest.raises(DrainingError, match="loading") as refused:
            served.generate(request())
        assert refused.value.code == "not_ready"
        await served.start()
        await served.stop()
        with pytest.raises(DrainingError, match="has stopped"):
            served.generate(request())

    within_time(main())


def test_a_bad_request_is_refused_at_once_and_harms_nobody(engine):
    async def main():
        async with running(engine) as served:
            with pytest.raises(RequestError, match="context"):
                served.generate(request(prompt_token_ids=prompt(64)))
            assert (await collect(served.generate(request())))[-1].finish_reason == "length"

    within_time(main())


def test_a_full_queue_counts_requests_that_the_engine_has_not_taken_in(runner, monkeypatch):
    engine = tiny.make_engine(runner, max_num_waiting=3)
    gate = Gate(engine, monkeypatch)

    async def main():
        async with running(engine, gate) as served:
            tasks = [asyncio.create_task(collect(served.generate(request("first"))))]
            await asyncio.to_thread(gate.is_waiting.wait)
            # The first one waits to be scheduled; two more fit.
            for i in range(2):
                tasks.append(asyncio.create_task(collect(served.generate(request(f"{i}")))))
                await asyncio.sleep(0)
            with pytest.raises(QueueFullError, match="3 requests"):
                served.generate(request("too many"))
            gate.open()
            for task in tasks:
                assert (await task)[-1].finish_reason == "length"

    within_time(main())


def test_when_the_thread_dies_all_requests_end_with_an_error(engine, monkeypatch):
    def die():
        raise SystemError("injected")

    async def main():
        async with running(engine) as served:
            made_before = served.generate(request("made before"))
            monkeypatch.setattr(engine, "step", die)
            requests = [request(f"{i}") for i in range(3)]
            found = await asyncio.gather(*(collect(served.generate(r)) for r in requests))
            assert [[o.finish_reason for o in outputs] for outputs in found] == [["error"]] * 3
            await until(lambda: not served.is_ready)
            [output] = await collect(made_before)
            assert (output.request_id, output.finish_reason) == ("made before", "error")
            with pytest.raises(DrainingError, match="has stopped"):
                served.generate(request("late"))

    within_time(main())


def test_a_load_that_fails_is_raised_by_start():
    def load(_):
        raise MemoryError("no room")

    async def main():
        served = AsyncLLMEngine(ThreadLink(load), tiny.tokenizer(), "tiny")
        with pytest.raises(MemoryError):
            await served.start()
        assert not served.is_ready
        await served.stop()

    within_time(main())

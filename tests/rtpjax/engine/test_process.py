"""The engine in a process of its own: what it answers, and what happens when a process ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rtpjax.engine.async_engine import AsyncLLMEngine
from rtpjax.engine.process import EngineProcess
from rtpjax.engine.request import GenerationRequest, Grammar
from rtpjax.errors import CheckpointError, DrainingError, EngineError
from tests.rtpjax.engine import tiny
from tests.rtpjax.engine.test_async_engine import collect, request, until, within_time

HERE = "tests.rtpjax.engine.served_null"
ROOT = Path(__file__).parents[3]


@contextlib.asynccontextmanager
async def running(function: str = "open_null", *arguments):
    link = EngineProcess(HERE, function, *arguments)
    assert link.describe() == "a description"
    served = AsyncLLMEngine(link, tiny.tokenizer(), "null")
    try:
        await served.start()
        yield served, link
    finally:
        await served.stop()
        assert not psutil.pid_exists(link.pid)


def test_a_life_of_an_engine_in_a_process():
    async def main():
        async with running() as (served, link):
            assert (served.is_ready, served.max_model_len) == (True, 2048)
            await answers(served)
            await lives_through_the_signals_that_are_for_the_server(served, link.pid)
            await ends_all_requests_at_once_when_it_is_killed(served, link.pid)

    within_time(main())


async def answers(served: AsyncLLMEngine) -> None:
    asked = [request(f"{i}", max_tokens=20, logprobs=2) for i in range(8)]
    for outputs in await asyncio.gather(*(collect(served.generate(r)) for r in asked)):
        tiny.assert_ends_once(outputs)
        assert len(tiny.tokens_of(outputs)) == 20
        assert outputs[0].logprobs is not None
    await until(lambda: served.stats().num_running == 0)
    assert served.stats().num_output_tokens == 8 * 20
    wrong = GenerationRequest("g", (1,), grammar=Grammar("regex", "(a"))
    [refused] = await collect(served.generate(wrong))
    assert (refused.finish_reason, refused.error_kind) == ("error", "request")
    stream = served.generate(request("closed", max_tokens=2000))
    await anext(stream)
    await stream.aclose()
    await until(lambda: served.stats().num_running == 0)
    assert served.stats().num_free_pages == served.stats().num_pages


async def lives_through_the_signals_that_are_for_the_server(served, pid: int) -> None:
    stream = served.generate(request(max_tokens=30))
    await anext(stream)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert (await collect(stream))[-1].finish_reason == "length"


async def ends_all_requests_at_once_when_it_is_killed(served, pid: int) -> None:
    before = served.stats().num_output_tokens
    asked = [request(f"{i}", max_tokens=2000) for i in range(16)]
    tasks = [asyncio.create_task(collect(served.generate(r))) for r in asked]
    await until(lambda: served.stats().num_output_tokens > before + 100)
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    for task in tasks:
        outputs = await task
        tiny.assert_ends_once(outputs[-1:])
        assert outputs[-1].finish_reason == "error"
        assert "SIGKILL" in outputs[-1].error
    assert time.monotonic() - started < 2
    assert not served.is_ready
    assert "SIGKILL" in served.failure
    with pytest.raises(DrainingError, match="has stopped"):
        served.generate(request("late"))


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("fail_to_open", CheckpointError, "no weights here"),
        ("fail_to_load", CheckpointError, "a tensor is missing"),
        ("fail_unforeseen", EngineError, "ZeroDivisionError"),
        ("die_while_loading", EngineError, "exit status 3"),
    ],
)
def test_what_goes_wrong_at_the_start_is_raised_here(function, error, message):
    async def main():
        with pytest.raises(error, match=message):
            async with running(function):
                pass

    within_time(main())


@pytest.mark.parametrize(
    "function", ["load_for_ever", pytest.param("open_null", marks=pytest.mark.processes)]
)
def test_no_process_is_left_when_the_server_is_killed(function):
    """While it loads, and while it serves."""
    script = (
        "import asyncio, sys\n"
        "from rtpjax.engine.process import EngineProcess\n"
        f"link = EngineProcess({HERE!r}, sys.argv[1])\n"
        "link.describe()\n"
        "print(link.pid, flush=True)\n"
        "async def main():\n"
        "    await link.open(lambda record: print(type(record).__name__, flush=True))\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", script, function]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        engine = psutil.Process(int(process.stdout.readline()))
        if function == "open_null":
            assert process.stdout.readline() == "Loaded\n"
        assert engine.is_running()
        process.kill()
        process.wait()
        psutil.wait_procs([engine], timeout=20)
        assert not engine.is_running()

"""Ports, start-up failures, and the drain."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from rtpjax.errors import CheckpointError, ConfigError
from server.lifecycle import bind, check_port
from tests.server.live_server import LiveServer, wait_until
from tests.server.scripted_engine import ScriptedEngine

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
from server.config import ServerConfig
from server.lifecycle import run
from tests.server.scripted_engine import ScriptedEngine

engine = ScriptedEngine(is_ready=False)
engine.delay_s = 0.02
run(engine, ServerConfig("127.0.0.1", 0), on_ready=lambda url: print(url, flush=True))
print("ended", len(engine.aborted), flush=True)
"""


def test_port_in_use_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}.*START_PORT"):
            check_port("127.0.0.1", port)


def test_bad_host() -> None:
    with pytest.raises(ConfigError, match="no such host"):
        check_port("no such host", 0)


def test_bind_holds_the_port() -> None:
    with bind("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with pytest.raises(ConfigError):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_an_engine_that_cannot_start_ends_the_server() -> None:
    class Broken(ScriptedEngine):
        async def start(self) -> None:
            await self.start_gate.wait()
            raise CheckpointError("tensor x is missing")

    engine = Broken(is_ready=False)
    engine.start_gate.clear()
    with LiveServer(engine) as server:
        server._loop.call_soon_threadsafe(engine.start_gate.set)
        server.join()
    assert isinstance(server.error, CheckpointError)


def test_drain_finishes_what_runs_and_refuses_the_rest(engine: ScriptedEngine) -> None:
    engine.delay_s = 0.03
    answers: list[httpx.Response] = []
    with LiveServer(engine) as server:
        worker = threading.Thread(target=lambda: answers.append(server.chat(max_tokens=20)))
        worker.start()
        wait_until(lambda: len(engine.running) == 1)
        server.stop()
        wait_until(lambda: engine.is_draining)
        with httpx.Client(base_url=server.url) as other:
            assert other.get("/health").status_code == 503
            assert other.post("/v1/completions", json={"prompt": "a"}).status_code == 503
        worker.join()
        server.join()
    assert answers[0].status_code == 200
    assert answers[0].json()["usage"]["completion_tokens"] == 20
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def test_an_engine_that_fails_ends_the_process_after_it_was_told() -> None:
    script = "import threading\n" + SCRIPT.replace(
        "run(engine",
        "threading.Timer(1.5, lambda: setattr(engine, 'failure', 'it is broken')).start()\n"
        "run(engine",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=ROOT,
    )  # fmt: skip
    with process:
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/health").status_code == 200
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 503)
        assert "the engine has stopped" in httpx.get(f"{url}/health").text
        assert httpx.get(f"{url}/liveness").status_code == 200
        assert process.wait(timeout=20) == 1
        assert "EngineError: it is broken" in process.stderr.read()


def test_sigterm_while_loading_ends_at_once() -> None:
    script = SCRIPT.replace(
        "run(engine", "engine.start = lambda: asyncio.to_thread(load)\nrun(engine"
    )
    script = script.replace("import sys", "import asyncio, time", 1).replace(
        "engine = ",
        "def load():\n    print('loading', flush=True)\n    time.sleep(60)\n\nengine = ",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 128 + signal.SIGTERM


def test_sigterm_drains_the_process() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        body = {"prompt": "a", "max_tokens": 30, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=20) as response:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            process.send_signal(signal.SIGTERM)  # of an orchestrator that repeats it
            text = response.read().decode()
        assert text.endswith("data: [DONE]\n\n")
        assert text.count("data: ") == 31
        assert process.stdout.read() == "ended 0\n"
    assert process.returncode == 0

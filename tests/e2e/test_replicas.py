"""Two replicas on Ray Serve, as processes; one of them is killed under load."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests.e2e.conftest import ROOT, SMALL

pytest.importorskip("ray.serve", reason="needs pip install rtpjax[ray]")
pytestmark = pytest.mark.nightly

REPLICA = "ray::ServeReplica:rtpjax:replica"
TOPICS = ("rivers", "bridges", "clocks", "glass", "salt", "maps", "tea", "snow")


@pytest.fixture(scope="module")
def url(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {
        "CHECKPOINT_PATH": str(model_path),
        "ACT_TYPE": "FP32",
        "KV_CACHE_MEM_MB": "512",
        "START_HOST": "127.0.0.1",
        "START_PORT": str(port),
        "NUM_REPLICAS": "2",
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        **SMALL,
    }
    log = tmp_path_factory.mktemp("replicas") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "rtpjax.cli", "replicas"],
            env={**os.environ, **own},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 600
    while "rtpjax is ready" not in log.read_text(errors="replace"):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    assert not replica_pids()


def replica_pids() -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith(REPLICA):
            found.append(process.pid)
    return found


def ask(url: str, text: str, **fields: object) -> dict:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
    response = requests.post(f"{url}/v1/chat/completions", json=body, timeout=900)
    assert response.status_code == 200, response.text
    return response.json()


def ask_streamed(url: str, text: str, num_tokens: int) -> tuple[int, str]:
    """How many deltas came, and how the stream ended: "[DONE]", or an error's code."""
    body = {"messages": [{"role": "user", "content": text}], "stream": True,
            "max_tokens": num_tokens, "ignore_eos": True}  # fmt: skip
    count, end = 0, "cut"
    with requests.post(
        f"{url}/v1/chat/completions", json=body, stream=True, timeout=900
    ) as response:
        assert response.status_code == 200, response.text
        for line in response.iter_lines():
            if line == b"data: [DONE]":
                end = "[DONE]"
            elif line.startswith(b"data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    end = event["error"]["code"]
                count += 1
    return count, end


def test_the_api_is_the_servers(url: str):
    assert requests.get(f"{url}/health", timeout=30).status_code == 200
    assert requests.get(f"{url}/v1/models", timeout=30).json()["data"]
    answer = ask(url, "Say hello.", max_tokens=8)
    assert answer["usage"]["completion_tokens"] <= 8
    bad = requests.post(f"{url}/v1/chat/completions", json={"messages": 3}, timeout=30)
    assert bad.status_code == 400 and bad.json()["error"]["param"] == "messages"
    assert requests.get(f"{url}/nowhere", timeout=30).status_code == 404
    count, end = ask_streamed(url, "Count to ten.", 12)
    assert end == "[DONE]" and count > 5


def test_conversations_that_share_a_prefix_share_a_replica(url: str):
    for topic in TOPICS[:3]:
        prefix = f"Notes about {topic}: " + f"the {topic} are old and long and known. " * 120
        first = ask(url, prefix + "What is the first question?", max_tokens=2)
        assert first["usage"]["prompt_tokens"] > 1000
        # Noise between, which the other replica may take.
        ask(url, f"Something else entirely. {topic} " * 60, max_tokens=2)
        second = ask(url, prefix + "And here is another one, please.", max_tokens=2)
        cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= 1000, topic


def test_a_killed_replica_loses_no_request_that_had_not_begun(url: str):
    victim = replica_pids()[0]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        streams = [pool.submit(ask_streamed, url, f"About {t}, at length:", 120) for t in TOPICS]
        answers = [
            pool.submit(ask, url, f"{t}? {i}", max_tokens=40, ignore_eos=True)
            for i, t in enumerate(TOPICS)
        ]
        time.sleep(4)
        begun_and_not = [f for f in streams + answers if not f.done()]
        os.kill(victim, signal.SIGKILL)
        for answer in answers:  # a whole answer has not begun before it is whole
            assert answer.result()["usage"]["completion_tokens"] == 40
        ends = [stream.result() for stream in streams]
    assert begun_and_not, "the replica was killed when all was done"
    # A stream that had begun says that it was cut; nobody is left in silence.
    assert all(end == "[DONE]" or (end == "replica_lost" and count > 1) for count, end in ends)
    # Others go on at once, and the lost one is replaced.
    assert ask(url, "Are you there?", max_tokens=4)
    deadline = time.monotonic() + 300
    while len(replica_pids()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.5)

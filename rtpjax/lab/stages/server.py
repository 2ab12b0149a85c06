"""A server with random weights, and `rtpjax bench serve` on it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from rtpjax.lab.stage import Lab

_READY_S = 150


def run(lab: Lab) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "LOAD_FORMAT": "dummy",
        "CHECKPOINT_PATH": str(lab.model),
        "START_HOST": "127.0.0.1",
        "START_PORT": str(port),
        "CONCURRENCY_LIMIT": lab.pick("64", "2"),
        "MAX_SEQ_LEN": lab.pick("2048", "256"),
        "MAX_BATCH_TOKENS_SIZE": lab.pick("2048", "32"),
        "RTPJAX_CACHE": str(lab.cache),
    }
    if lab.is_small:
        settings["KV_CACHE_MEM_MB"] = "64"
    started = time.perf_counter()
    # What it says goes to the stage's log.
    command = [sys.executable, "-m", "rtpjax.start_server"]
    process = subprocess.Popen(command, env=os.environ | settings)
    try:
        _wait(process, f"http://127.0.0.1:{port}/health")
        lab.record.measured("server.ready", time.perf_counter() - started, "s")
        for clients, requests in lab.pick(((1, 8), (16, 64), (64, 192)), ((1, 2), (2, 4))):
            with lab.record.attempt(f"server.{clients}"):
                _bench(lab, f"http://127.0.0.1:{port}/v1", clients, requests)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}; see the log")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.3)
    raise RuntimeError(f"the server was not ready after {_READY_S} s; see the log")


def _bench(lab: Lab, url: str, clients: int, requests: int) -> None:
    path = lab.scratch / f"serve_{clients}.json"
    lengths = lab.pick(("512", "128"), ("16", "4"))
    command = [sys.executable, "-m", "rtpjax.cli", "bench", "serve", "--url", url, "--ignore-eos"]
    command += ["--clients", str(clients), "--num-requests", str(requests), "--json", str(path)]
    command += ["--input-len", lengths[0], "--output-len", lengths[1], "--num-warmup", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout)[-300:]
        raise RuntimeError(f"bench serve: exit status {done.returncode}: {said}")
    found = _summary(path)
    lab.record.measured(
        f"server.{clients}", found["output_throughput"], "tok/s", num_errors=found["num_errors"]
    )
    for name in ("ttft_s", "tpot_s"):
        id = f"server.{clients}.{name.removesuffix('_s')}"
        lab.record.measured(id, 1e3 * found[name]["p50"], "ms", p99=1e3 * found[name]["p99"])


def _summary(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["summary"]

"""A real server process with the embedded model, on a free port; started once for all e2e tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from checkpoints_conv.package_models import ensure_model
from rtpjax.errors import CheckpointError

ROOT = Path(__file__).parents[2]
START_S = 400
# Few and small programs: the tests are about behaviour, and compiling is most of their time.
SMALL = {"CONCURRENCY_LIMIT": "4", "MAX_BATCH_TOKENS_SIZE": "128", "MAX_SEQ_LEN": "2048"}


class Server:
    """A server process; `url` once it is ready."""

    def __init__(self, log: Path, **environment: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        own = {"START_PORT": str(port), "START_HOST": "127.0.0.1", "PYTHONPATH": str(ROOT)}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rtpjax.start_server"],
                env={**os.environ, **own, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if requests.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.2)
        raise AssertionError(f"the server did not become ready:\n{self.log.read_text()[-3000:]}")

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        for line in requests.get(f"{self.url}/metrics", timeout=10).text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    return Path(os.environ.get("RTPJAX_CACHE", "~/.cache/rtpjax")).expanduser()


@pytest.fixture(scope="session")
def model_path(cache_dir: Path) -> Path:
    """The embedded model."""
    try:
        return ensure_model(cache_dir, has_progress=False)
    except CheckpointError as error:
        pytest.skip(f"the embedded model cannot be had: {error}")


@pytest.fixture(scope="session")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(
        tmp_path_factory.mktemp("server") / "log",
        CHECKPOINT_PATH=str(model_path),
        ACT_TYPE="FP32",
        **SMALL,
    )
    running.wait_ready()
    yield running
    running.process.kill()
    running.process.wait()

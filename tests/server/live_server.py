"""A server on a free port, in a thread with a loop of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import uvloop

from server.config import ServerConfig
from server.engine_protocol import Engine
from server.lifecycle import bind, serve


class LiveServer:
    """`with LiveServer(engine) as server:` serves until the block ends."""

    def __init__(self, engine: Engine, **settings: Any):
        self.engine = engine
        self._config = ServerConfig(host="127.0.0.1", port=0, **settings)
        self._sock = bind("127.0.0.1", 0)
        self.port: int = self._sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.error: BaseException | None = None
        self._loop = uvloop.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(
                serve(self.engine, self._config, sock=self._sock, stop=self._stop)
            )
        except Exception as error:  # noqa: BLE001 (handed to the test)
            self.error = error
            self._sock.close()  # whoever waits for an answer need not wait longer
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def __enter__(self) -> LiveServer:
        self._thread.start()
        self.client = httpx.Client(base_url=self.url, timeout=30)
        try:
            wait_until(lambda: self.client.get("/liveness").status_code == 200)
        except httpx.TransportError:
            if self.error is not None:
                raise self.error from None
            raise
        return self

    def stop(self) -> None:
        """Begins the drain."""
        self._loop.call_soon_threadsafe(self._stop.set)

    def join(self) -> None:
        """Waits until the server has ended."""
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self._thread.is_alive():
            self.stop()
        self.join()

    @property
    def num_connections(self) -> int:
        """Those that there are, with the one of `client`."""
        return int(self._gauge("rtpjax_http_connections"))

    @property
    def held_body_bytes(self) -> int:
        """Of the bodies of requests that are worked on."""
        return int(self._gauge("rtpjax_http_body_bytes"))

    def _gauge(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def chat(self, text: str = "hello", **fields: Any) -> httpx.Response:
        """One chat request with a user's message."""
        body = {"messages": [{"role": "user", "content": text}], **fields}
        return self.client.post("/v1/chat/completions", json=body)


def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    """Polls until `condition` holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)

"""One streamed request to an OpenAI-compatible server, timed.

aiohttp rather than httpx: 10 against 80 microseconds of client time per event at 64 streams, and
on one machine the client takes its time from the server.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

import aiohttp

from bench.stats import RequestRecord

MAX_REASON_LEN = 160


class StreamError(Exception):
    """The server's answer is not a complete stream."""


class BenchClient:
    """Sends requests over kept-alive connections, as many as are in flight."""

    def __init__(
        self, url: str, *, model: str | None = None, api_key: str | None = None, timeout_s: float
    ):
        """Prepares for a server.

        Args:
            url: The API's root, such as `http://localhost:8088/v1`.
            model: None takes the first model that the server lists.
            timeout_s: A request that takes longer in all has failed.
        """
        self.url = url.rstrip("/")
        self.model = model
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        )

    async def __aenter__(self) -> BenchClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def resolve_model(self) -> str:
        """Returns the model's name, asking the server if none was given."""
        if self.model is None:
            async with self._session.get(f"{self.url}/models") as response:
                response.raise_for_status()
                self.model = str((await response.json())["data"][0]["id"])
        return self.model

    async def host_seconds(self) -> tuple[float, float] | None:
        """Time that rtpjax's engine thread did not wait, and processor time of its event loop.

        None for a server without these metrics.
        """
        async with self._session.get(f"{self.url.removesuffix('/v1')}/metrics") as response:
            lines = (await response.text()).splitlines() if response.ok else []
        values = dict(line.split()[:2] for line in lines if line.startswith("rtpjax_"))
        names = ("rtpjax_engine_host_seconds_total", "rtpjax_event_loop_cpu_seconds_total")
        if not all(name in values for name in names):
            return None
        return float(values[names[0]]), float(values[names[1]])

    async def run(self, body: dict[str, object], start_s: float | None = None) -> RequestRecord:
        """Sends one request and reads its stream to the end; a failure is part of the record.

        Args:
            body: A request body of `Workload`; its keys tell the endpoint.
            start_s: When the request was due on the `perf_counter` clock; None means now.
        """
        start_s = time.perf_counter() if start_s is None else start_s
        times: list[float] = []
        usage: dict[str, Any] = {}
        error = None
        try:
            async for arrival_s, event in self._events(body):
                usage = event.get("usage") or usage
                if _has_text(event):
                    times.append(arrival_s)
            if not usage:
                raise StreamError("the stream has no usage: token counts are unknown")
        except (StreamError, aiohttp.ClientError, TimeoutError, OSError, ValueError) as reason:
            error = f"{type(reason).__name__}: {reason}"[:MAX_REASON_LEN]
        details = usage.get("prompt_tokens_details") or {}
        return RequestRecord(
            start_s=start_s,
            end_s=time.perf_counter(),
            event_times_s=tuple(times),
            num_prompt_tokens=usage.get("prompt_tokens", 0),
            num_output_tokens=usage.get("completion_tokens", 0),
            num_cached_tokens=details.get("cached_tokens") or 0,
            error=error,
        )

    async def _events(self, body: dict[str, object]) -> AsyncIterator[tuple[float, dict[str, Any]]]:
        """Yields (arrival time, event); events of one network read share its time."""
        path = "chat/completions" if "messages" in body else "completions"
        options = {"stream": True, "stream_options": {"include_usage": True}}
        payload = {"model": await self.resolve_model(), **body, **options}
        async with self._session.post(f"{self.url}/{path}", json=payload) as response:
            if response.status != 200:
                raise StreamError(f"HTTP {response.status}: {await response.text()}")
            rest = b""
            async for data in response.content.iter_any():
                arrival_s = time.perf_counter()
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if not line.startswith(b"data:"):
                        continue
                    value = line[5:].strip()
                    if value == b"[DONE]":
                        return
                    yield arrival_s, _parse(value)
        raise StreamError("the stream ended without [DONE]")


def _parse(value: bytes) -> dict[str, Any]:
    event = json.loads(value)
    if "error" in event:
        raise StreamError(f"error event: {event['error']}")
    return event


def _has_text(event: dict[str, Any]) -> bool:
    """False for the chat's opening role, the finish reason and the usage."""
    for choice in event.get("choices", ()):
        delta = choice.get("delta") or choice
        if any(delta.get(key) for key in ("text", "content", "reasoning_content", "tool_calls")):
            return True
    return False

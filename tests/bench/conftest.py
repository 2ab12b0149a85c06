"""A server that streams at known times, so that what the benchmarks measure can be checked."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

HEAD = "HTTP/1.1 {} OK\r\ncontent-type: {}\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass
class FakeServer:
    """Answers each request with `max_tokens` events.

    Attributes:
        failures: For the requests in order: None, "status", "cut", "error" or "no_usage".
        bodies: The requests that came.
    """

    ttft_s: float = 0.05
    itl_s: float = 0.01
    failures: list[str | None] = field(default_factory=list)
    is_caching: bool = False
    bodies: list[dict] = field(default_factory=list)
    max_in_flight: int = 0
    _num_in_flight: int = 0
    _seen: list[list[int]] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                if head.startswith("get"):
                    chunk(
                        writer, HEAD.format(200, "application/json"), '{"data": [{"id": "fake"}]}'
                    )
                    chunk(writer, "", "")
                    continue
                length = int(head.split("content-length:")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self._num_in_flight += 1
                self.max_in_flight = max(self.max_in_flight, self._num_in_flight)
                await self.answer(writer, body, "/chat/" in head)
                self._num_in_flight -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, writer: asyncio.StreamWriter, body: dict, is_chat: bool) -> None:
        failure = self.failures[len(self.bodies)] if len(self.bodies) < len(self.failures) else None
        self.bodies.append(body)
        if failure == "status":
            chunk(writer, HEAD.format(429, "application/json"), '{"error": "too many"}')
            chunk(writer, "", "")
            return
        num_cached = self.cached(body) if self.is_caching else 0
        opening = {"choices": [{"delta": {"role": "assistant", "content": ""}}]} if is_chat else {}
        chunk(writer, HEAD.format(200, "text/event-stream"), event(opening))
        await asyncio.sleep(self.ttft_s / (4 if num_cached else 1))
        text = {"delta": {"content": "x"}} if is_chat else {"text": "x"}
        for number in range(body["max_tokens"]):
            if number:
                await asyncio.sleep(self.itl_s)
            chunk(writer, "", event({"choices": [text]}))
            if failure == "cut":
                chunk(writer, "", "")
                return
            if failure == "error":
                chunk(writer, "", event({"error": {"message": "engine failed"}}))
        chunk(writer, "", event({"choices": [{"text": "", "finish_reason": "length"}]}))
        if failure != "no_usage":
            usage = {"prompt_tokens": 7, "completion_tokens": body["max_tokens"]}
            usage["prompt_tokens_details"] = {"cached_tokens": num_cached}
            chunk(writer, "", event({"choices": [], "usage": usage}))
        chunk(writer, "", "data: [DONE]\n\n")
        chunk(writer, "", "")

    def cached(self, body: dict) -> int:
        """A prefix cache with pages of 16 tokens."""
        best = 0
        for seen in self._seen:
            pairs = zip(seen, body["prompt"], strict=False)
            differing = [i for i, (a, b) in enumerate(pairs) if a != b]
            best = max(best, (differing or [0])[0] // 16 * 16)
        self._seen.append(body["prompt"])
        return best


def event(content: dict) -> str:
    return f"data: {json.dumps(content)}\n\n"


def chunk(writer: asyncio.StreamWriter, head: str, text: str) -> None:
    """Writes one HTTP chunk at once; an empty text ends the answer."""
    data = text.encode()
    writer.write(head.encode() + b"%x\r\n%s\r\n" % (len(data), data))


@pytest.fixture
def start_server() -> Iterator[Callable[[FakeServer], str]]:
    """Starts a server in a thread of its own; returns the API's URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers = []

    def start(fake: FakeServer) -> str:
        starting = asyncio.start_server(fake.handle, "127.0.0.1", 0)
        servers.append(asyncio.run_coroutine_threadsafe(starting, loop).result())
        return f"http://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}/v1"

    async def stop() -> None:
        for server in servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    yield start
    asyncio.run_coroutine_threadsafe(stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def fake_server() -> type[FakeServer]:
    return FakeServer

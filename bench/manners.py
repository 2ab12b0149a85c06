"""What the clients of `bench soak` do: most ask and read, the others are what servers meet outside.

Each function does one thing once, over a connection of its own where it misbehaves. It returns the
HTTP status that came, 0 for none, so that a 5xx shows wherever it came.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from bench.workload import WORDS

_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "thing", "schema": _SCHEMA}}
_ERRORS = aiohttp.ClientError, OSError, TimeoutError, asyncio.IncompleteReadError, ValueError


@dataclass(frozen=True, slots=True)
class Question:
    """A request whose answer is known: greedy, so that it is the same whenever it is asked.

    Attributes:
        path: Below the API's root.
        body: Without model and stream.
    """

    path: str
    body: dict[str, Any]


def questions(count: int, output_len: int, seed: int, *, has_chat: bool = True) -> list[Question]:
    """Completions and chats of random words, one in eight held to a schema."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.randint(4, 120)))
        body: dict[str, Any] = {"temperature": 0, "max_tokens": rng.randint(1, output_len)}
        if has_chat and number % 2:
            body["messages"] = [{"role": "user", "content": text}]
            if number % 8 == 7:
                body["response_format"] = _FORMAT
            found.append(Question("chat/completions", body))
        else:
            found.append(Question("completions", body | {"prompt": text, "ignore_eos": True}))
    return found


@dataclass(frozen=True, slots=True)
class Place:
    """Where the server is, and how it is talked to.

    Attributes:
        url: Root of the API.
        model: What it serves.
        api_key: Or None.
        session: For those who behave.
    """

    url: str
    model: str
    api_key: str | None
    session: aiohttp.ClientSession

    async def ask(self, question: Question, *, is_stream: bool) -> tuple[int, str]:
        """Status and text of an answer; the reason in place of the text if there is none."""
        body = {"model": self.model, **question.body, "stream": is_stream}
        url = f"{self.url}/{question.path}"
        try:
            async with self.session.post(url, json=body) as response:
                raw = await response.text()
                if response.status != 200:
                    return response.status, raw[:300]
                return 200, _text_of_stream(raw) if is_stream else _text_of(json.loads(raw))
        except _ERRORS as error:
            return 0, f"{type(error).__name__}: {error}"

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A socket of its own."""
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(
            parts.hostname, parts.port or 80, limit=1 << 16
        )
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    def head(self, path: str, length: int | str, method: str = "POST") -> bytes:
        """The head of a request."""
        key = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        root = urlsplit(self.url).path
        return (
            f"{method} {root}/{path} HTTP/1.1\r\nHost: soak\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        ).encode()


def _text_of(answer: dict[str, Any]) -> str:
    [choice] = answer["choices"]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def _text_of_stream(raw: str) -> str:
    """The joined text of a stream.

    Raises:
        ValueError: It is not whole.
    """
    if not raw.rstrip().endswith("data: [DONE]"):
        raise ValueError(f"the stream has no end: {raw[-200:]!r}")
    text = ""
    for line in raw.splitlines():
        if not line.startswith("data:") or line == "data: [DONE]":
            continue
        event = json.loads(line[5:])
        if "error" in event:
            raise ValueError(f"an error in the stream: {event['error']}")
        for choice in event["choices"]:
            text += choice.get("text") or choice.get("delta", {}).get("content") or ""
    return text


async def hang_up(place: Place, question: Question, rng: random.Random) -> int:
    """Leaves in the middle of an answer, or before it has begun."""
    body = {"model": place.model, **question.body, "stream": rng.random() < 0.7}
    body["max_tokens"] = 200
    data = json.dumps(body).encode()
    async with place.connection() as (reader, writer):
        writer.write(place.head(question.path, len(data)) + data)
        await writer.drain()
        if rng.random() < 0.3:
            return 0
        status = await _status(reader)
        for _ in range(rng.randint(0, 8)):
            await asyncio.wait_for(reader.read(200), 10)
        return status


async def send_rubbish(place: Place, question: Question, rng: random.Random) -> int:
    """Something that is no request, or one that asks for what cannot be."""
    body = {"model": place.model, **question.body}
    wrong: list[bytes] = [
        rng.randbytes(rng.randint(0, 2000)),
        json.dumps(body).encode()[: rng.randint(1, 60)],
        b"[" * rng.randint(1, 50_000),
        json.dumps(body | {"max_tokens": rng.choice([-1, "x", 10**30, None, []])}).encode(),
        json.dumps(body | {"stop": [""], "temperature": "hot"}).encode(),
        json.dumps(body | {"temperature": 1e999}).encode(),
        json.dumps(body | {"cache_salt": "\ud800"}).encode(),
        json.dumps(body | {"logit_bias": {str(10**9): 5}}).encode(),
        json.dumps(
            body | {"response_format": {"type": "regex", "pattern": "(" * rng.randint(1, 500)}}
        ).encode(),
        json.dumps({"messages": [{"role": "user"}] * rng.randint(1, 500)}).encode(),
    ]
    data = rng.choice(wrong)
    async with place.connection() as (reader, writer):
        if rng.random() < 0.2:
            writer.write(data + b"\r\n\r\n")  # without a head
        else:
            path = rng.choice([question.path, question.path, "messages", "responses", "none"])
            writer.write(place.head(path, len(data)) + data)
        with contextlib.suppress(OSError):
            await writer.drain()
            writer.write_eof()
        return await _status(reader)


async def read_slowly(place: Place, question: Question, rng: random.Random) -> int:
    """Takes a few bytes a second, and leaves after a while."""
    body = {"model": place.model, **question.body, "stream": True, "max_tokens": 300}
    data = json.dumps(body).encode()
    async with place.connection() as (reader, writer):
        writer.write(place.head(question.path, len(data)) + data)
        await writer.drain()
        status = await _status(reader)
        for _ in range(rng.randint(2, 10)):
            await asyncio.sleep(0.5)
            if not await reader.read(20):
                break
        return status


async def send_slowly(place: Place, question: Question, rng: random.Random) -> int:
    """Sends a body byte by byte, and leaves before it is whole."""
    data = json.dumps({"model": place.model, **question.body}).encode()
    async with place.connection() as (_, writer):
        writer.write(place.head(question.path, len(data)))
        for byte in data[: rng.randint(1, min(20, len(data) - 1))]:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.2)
        return 0


async def send_much(place: Place, question: Question, rng: random.Random) -> int:
    """A huge body: too large, or full of what is refused."""
    kind = rng.randrange(4)
    body: dict[str, Any] = {"model": place.model, **question.body}
    if kind == 0:  # more than is taken
        data = json.dumps(body | {"user": "x" * (20 << 20)}).encode()
    elif kind == 1:  # longer than any context
        data = json.dumps(body | {"prompt": "word " * 400_000}).encode()
    elif kind == 2:
        messages = [{"role": "user", "content": "a"}] * rng.randint(20_000, 100_000)
        data = json.dumps({"model": place.model, "messages": messages}).encode()
    else:
        data = json.dumps(body | {"stop": ["a" * 2000] * 2000}).encode()
    async with place.connection() as (reader, writer):
        writer.write(place.head(question.path, len(data)))
        reading = asyncio.create_task(_status(reader))
        try:
            for at in range(0, len(data), 1 << 18):
                writer.write(data[at : at + (1 << 18)])
                await writer.drain()
                if reading.done() or rng.random() < 0.005:
                    break
        except OSError:
            pass  # it said 413 and closed
        if reading.done() or rng.random() < 0.8:
            return await reading
        reading.cancel()
        return 0


async def ask_and_leave_grammars(place: Place, question: Question, rng: random.Random) -> int:
    """A schema that nobody has asked for before, of which nobody waits for the end."""
    names = {f"{rng.choice(WORDS)}{rng.randrange(10**6)}": {"type": "string"} for _ in range(40)}
    schema = {"type": "object", "properties": names, "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}
    body = {"model": place.model, **question.body, "stream": True, "response_format": form}
    data = json.dumps(body).encode()
    async with place.connection() as (reader, writer):
        writer.write(place.head(question.path, len(data)) + data)
        await writer.drain()
        await asyncio.sleep(rng.random() * 0.2)
        if rng.random() < 0.5:
            return 0
        return await _status(reader)


async def _status(reader: asyncio.StreamReader) -> int:
    """The status of an answer, 0 if the server just closed."""
    line = await asyncio.wait_for(reader.readline(), 120)
    words = line.split()
    return int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/") else 0


Manner = Callable[[Place, Question, random.Random], Awaitable[int]]
RUDE: dict[str, Manner] = {
    "hang up": hang_up,
    "rubbish": send_rubbish,
    "read slowly": read_slowly,
    "send slowly": send_slowly,
    "huge bodies": send_much,
    "grammars": ask_and_leave_grammars,
}


async def misbehave(
    name: str, place: Place, question: Question, rng: random.Random
) -> tuple[int, str | None]:
    """Does one of RUDE; returns the status, and what went wrong with the connection."""
    try:
        return await RUDE[name](place, question, rng), None
    except _ERRORS as error:
        return 0, type(error).__name__

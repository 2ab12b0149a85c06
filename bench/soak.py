"""`bench soak`: many clients for long, a quarter of which misbehave; what becomes of the others.

First each question is asked alone. Then all clients are at work, and the answers of those who
behave must be the ones of the quiet server; none may get a 5xx, and none may be refused. Beside
them /liveness is timed and the process's memory read. At the end all pages of the cache must be
free.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
import psutil

from bench.client import BenchClient
from bench.manners import RUDE, Place, Question, misbehave, questions
from bench.report import table, write_json
from bench.serve import add_server_arguments

_MIB = 1 << 20
_START_S = 600
_END_S = 120  # for requests that nobody waits for any more
_MAX_SLOPE_MIB = 10.0  # a window; less is the allocators' noise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_arguments(parser)
    server = parser.add_mutually_exclusive_group()
    server.add_argument("--pid", type=int, help="the server's process, to read its memory")
    server.add_argument(
        "--spawn",
        action="store_true",
        help="start a server of this environment's settings in place of using --url",
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rude", type=float, default=0.25, help="share that misbehaves")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--num-questions", type=int, default=48)
    parser.add_argument("--output-len", type=int, default=32, help="most tokens of an answer")
    parser.add_argument("--window-s", type=float, default=60.0, help="seconds a line of the table")
    parser.add_argument("--no-chat", action="store_true", help="only completions")


@dataclass
class Window:
    """What happened in one stretch of time.

    Attributes:
        num_right, num_wrong: Answers of those who behave.
        num_rude: Things done by the others.
        liveness_s: How long /liveness took, each time.
        rss_mib: The server's memory at the end.
        num_free_tokens: Of the cache, at the end.
    """

    num_right: int = 0
    num_wrong: int = 0
    num_rude: int = 0
    liveness_s: list[float] = field(default_factory=list)
    rss_mib: float | None = None
    num_free_tokens: int = 0


@dataclass
class Soak:
    """A run's figures.

    Attributes:
        windows: One for each stretch of time.
        statuses: Of all answers, by who got them.
        wrong: Some of the answers that were not those of the quiet server.
        troubles: Of connections of those who misbehave.
    """

    windows: list[Window] = field(default_factory=lambda: [Window()])
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    troubles: Counter[str] = field(default_factory=Counter)
    num_free_tokens: int = 0
    num_tokens: int = 0

    @property
    def now(self) -> Window:
        return self.windows[-1]

    @property
    def num_server_errors(self) -> int:
        return sum(n for (_, status), n in self.statuses.items() if status >= 500)

    @property
    def slope_mib(self) -> float | None:
        """Growth of the server's memory, MiB a window, over the second half of the run."""
        known = [w.rss_mib for w in self.windows if w.rss_mib is not None]
        known = known[len(known) // 2 :]
        return float(np.polyfit(range(len(known)), known, 1)[0]) if len(known) > 1 else None

    def failures(self) -> list[str]:
        """What must not be."""
        found = []
        if num_wrong := sum(w.num_wrong for w in self.windows):
            found.append(f"{num_wrong} answers were not those of the quiet server")
        if not any(w.num_right for w in self.windows):
            found.append("nobody got an answer")
        if self.num_server_errors:
            found.append(f"{self.num_server_errors} answers had a status of 500 or more")
        if self.slope_mib is not None and self.slope_mib > _MAX_SLOPE_MIB:
            found.append(f"memory grew by {self.slope_mib:.0f} MiB a window in the second half")
        if self.num_free_tokens != self.num_tokens:
            held = self.num_tokens - self.num_free_tokens
            found.append(f"{held} tokens of the cache are held though nobody asks anything")
        return found


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 1 if something went wrong that must not."""
    try:
        with _server(args) as (url, pid):
            soak = asyncio.run(_soak(args, url, pid))
    except (aiohttp.ClientError, TimeoutError) as error:
        print(f"the server cannot be used: {error}; is it up?")
        return 1
    _print(args, soak)
    failures = soak.failures()
    write_json(
        args.json,
        "soak",
        {
            "arguments": {k: v for k, v in vars(args).items() if isinstance(v, int | float | str)},
            "windows": [vars(window) for window in soak.windows],
            "statuses": {f"{who}: {status}": n for (who, status), n in soak.statuses.items()},
            "slope_mib": soak.slope_mib,
            "failures": failures,
        },
    )
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


@contextlib.contextmanager
def _server(args: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """The API's root and the server's process, which is started if it is asked for."""
    if not args.spawn:
        yield args.url, args.pid
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rtpjax.start_server", "--start-host", "127.0.0.1"]
    process = subprocess.Popen([*command, "--start-port", str(port)])
    try:
        yield f"http://127.0.0.1:{port}/v1", process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        print(f"the server ended with status {status}")


async def _soak(args: argparse.Namespace, url: str, pid: int | None) -> Soak:
    async with _place(args, url) as place:
        asked = questions(args.num_questions, args.output_len, args.seed, has_chat=not args.no_chat)
        known = []
        for question in asked:
            status, text = await place.ask(question, is_stream=False)
            if status != 200:
                raise aiohttp.ClientError(f"alone, {question.path} got {status}: {text}")
            known.append(text)
        print(f"{len(known)} questions have been answered alone", flush=True)
        soak = Soak()
        end = time.monotonic() + 60 * args.minutes
        num_rude = round(args.rude * args.clients)
        clients = [
            _rude(place, asked, soak, i, random.Random(f"{args.seed} {i}"), end)
            for i in range(num_rude)
        ]
        for i in range(args.clients - num_rude):
            rng = random.Random(f"{args.seed} good {i}")
            clients.append(_good(place, asked, known, soak, rng, end))
        watching = asyncio.create_task(_watch(args, place, soak, pid))
        await asyncio.gather(*clients)
        await _settle(place, soak)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await _close(place, soak, pid)
        return soak


@contextlib.asynccontextmanager
async def _place(args: argparse.Namespace, url: str) -> AsyncIterator[Place]:
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=args.timeout_s),
        headers=headers,
    ) as session:
        model = args.model or await _model(args, url)
        yield Place(url.rstrip("/"), model, args.api_key, session)


async def _model(args: argparse.Namespace, url: str) -> str:
    """The model's name; a server that was just started needs a while."""
    deadline = time.monotonic() + (_START_S if args.spawn else 5)
    async with BenchClient(url, api_key=args.api_key, timeout_s=10) as client:
        while True:
            try:
                name = await client.resolve_model()
                if await _is_ready(url):
                    return name
            except (aiohttp.ClientError, TimeoutError):
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise aiohttp.ClientError("/health is not 200")
            await asyncio.sleep(1)


async def _is_ready(url: str) -> bool:
    async with aiohttp.ClientSession() as session, session.get(f"{_root(url)}/health") as response:
        return response.status == 200


def _root(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


async def _good(
    place: Place,
    asked: list[Question],
    known: list[str],
    soak: Soak,
    rng: random.Random,
    end: float,
) -> None:
    while time.monotonic() < end:
        number = rng.randrange(len(asked))
        status, text = await place.ask(asked[number], is_stream=rng.random() < 0.5)
        soak.statuses["behave", status] += 1
        if status == 200 and text == known[number]:
            soak.now.num_right += 1
            continue
        soak.now.num_wrong += 1
        if len(soak.wrong) < 10:
            soak.wrong.append(f"question {number}: {status} {text!r}, alone {known[number]!r}")
        if status == 0:
            await asyncio.sleep(0.5)  # no server: no hot loop


async def _rude(
    place: Place, asked: list[Question], soak: Soak, first: int, rng: random.Random, end: float
) -> None:
    """Does all that there is in turn."""
    for name in itertools.islice(itertools.cycle(RUDE), first % len(RUDE), None):
        if time.monotonic() > end:
            return
        status, trouble = await misbehave(name, place, rng.choice(asked), rng)
        soak.statuses[name, status] += 1
        soak.now.num_rude += 1
        if trouble is not None:
            soak.troubles[f"{name}: {trouble}"] += 1
        await asyncio.sleep(0.1)


async def _watch(args: argparse.Namespace, place: Place, soak: Soak, pid: int | None) -> None:
    """Times /liveness twice a second, and begins a new window now and then."""
    next_window = time.monotonic() + args.window_s
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        while True:
            started = time.monotonic()
            async with session.get(f"{_root(place.url)}/liveness") as response:
                soak.statuses["/liveness", response.status] += 1
                await response.read()
            soak.now.liveness_s.append(time.monotonic() - started)
            if time.monotonic() >= next_window:
                next_window += args.window_s
                await _close(place, soak, pid)
                print(_row(len(soak.windows), soak.now), flush=True)
                soak.windows.append(Window())
            await asyncio.sleep(0.5)


async def _close(place: Place, soak: Soak, pid: int | None) -> None:
    """Reads what is measured at the end of a window."""
    soak.now.num_free_tokens = (await _cache(place))["available_kv_cache"]
    if pid is not None:
        soak.now.rss_mib = psutil.Process(pid).memory_info().rss / _MIB


async def _settle(place: Place, soak: Soak) -> None:
    """Waits until the server has noticed that everybody has left, and all pages are free."""
    deadline = time.monotonic() + _END_S
    while True:
        cache = await _cache(place)
        soak.num_tokens = cache["total_kv_cache"]
        soak.num_free_tokens = cache["available_kv_cache"]
        if soak.num_free_tokens == soak.num_tokens or time.monotonic() > deadline:
            return
        await asyncio.sleep(0.5)


async def _cache(place: Place) -> dict[str, Any]:
    async with place.session.get(f"{_root(place.url)}/cache_status") as response:
        response.raise_for_status()
        return await response.json()


def _row(number: int, window: Window) -> tuple[object, ...]:
    times = 1e3 * np.array(window.liveness_s or [0.0])
    return (
        str(number),
        window.num_right,
        window.num_wrong,
        window.num_rude,
        *(float(x) for x in (np.median(times), np.percentile(times, 99), times.max())),
        window.rss_mib,
    )


def _print(args: argparse.Namespace, soak: Soak) -> None:
    header = ("window", "right", "wrong", "rude", "live p50 ms", "p99", "max", "rss MiB")
    print(table(header, [_row(i + 1, window) for i, window in enumerate(soak.windows)]))
    print(f"\nwindows of {args.window_s:g} s, {args.clients} clients, {os.cpu_count()} cores")
    for (who, status), count in sorted(soak.statuses.items()):
        print(f"{who}: {status or 'no answer'} x{count}")
    for trouble, count in sorted(soak.troubles.items()):
        print(f"{trouble} x{count}")
    if soak.slope_mib is not None:
        print(f"memory grew by {soak.slope_mib:.2f} MiB a window in the second half")
    print(f"cache: {soak.num_free_tokens} of {soak.num_tokens} tokens are free at the end")
    for line in soak.wrong:
        print(line[:400])

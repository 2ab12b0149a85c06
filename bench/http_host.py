"""`bench http`: what the host does for a token, from the scheduler to the socket, without a device.

A server whose device answers at once (null_engine.py) streams to many connections, and this side
does no more than count what comes. With `--beside` the server of another checkout stands beside it,
under the same script; rounds alternate between the two.

The client takes its share of the machine. Where that has few cores, the servers' own processor
time for a token is the better figure; both are shown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil

from bench.model import add_model, find_model
from bench.report import busy_share, table, write_json
from bench.workload import random_token_ids

_HERE = Path(__file__).resolve()
_END = b"\r\n0\r\n\r\n"  # of a chunked answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, has_dummy=False)
    parser.add_argument("--beside", metavar="FOLDER", help="another checkout")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--input-len", type=int, default=16)
    parser.add_argument("--output-len", type=int, default=128, help="tokens of each stream")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write results here")


def run(args: argparse.Namespace) -> int:
    """Returns the exit status."""
    busy = busy_share()
    model = find_model(args)
    folders = [_HERE.parents[1], *([Path(args.beside).resolve()] if args.beside else [])]
    sides = [_Server(folder, model, args.streams) for folder in folders]
    try:
        for side in sides:
            side.measure(args, 0)  # the first round warms up
        rounds = [
            [side.measure(args, number) for side in sides] for number in range(1, args.rounds + 1)
        ]
    finally:
        for side in sides:
            side.close()
    print(report([str(folder) for folder in folders], rounds))
    found = [[each._asdict() for each in one] for one in rounds]
    write_json(args.json, "http", {"busy_share_before": busy, "rounds": found})
    return 0


class Round(NamedTuple):
    """What one side did in a round.

    Attributes:
        num_tokens, num_events: That came.
        elapsed_s: From the first request to the last byte.
        server_s, client_s: Processor time of the server's processes, and of this one.
    """

    num_tokens: int
    num_events: int
    elapsed_s: float
    server_s: float
    client_s: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.num_tokens / self.elapsed_s

    @property
    def token_us(self) -> float:
        """Microseconds of the server's processor time for a token."""
        return 1e6 * self.server_s / self.num_tokens


def report(names: list[str], rounds: list[list[Round]]) -> str:
    """A table with a row a side; ratios are to the last one."""
    header = ["server", "tok/s", "ratio", "lowest", "highest", "server us/token", "ratio"]
    header += ["tokens an event", "client's share of a core"]
    rows: list[list[object]] = []
    for i, name in enumerate(names):
        own = [one[i] for one in rounds]
        rates = [one[i].rate / one[-1].rate for one in rounds]
        costs = [one[-1].token_us / one[i].token_us for one in rounds]
        rows.append(
            [
                name,
                median(each.rate for each in own),
                median(rates),
                min(rates),
                max(rates),
                median(each.token_us for each in own),
                median(costs),
                median(each.num_tokens / each.num_events for each in own),
                median(each.client_s / each.elapsed_s for each in own),
            ]
        )
    return table(header, rows)


class _Server:
    """A process with a checkout's server."""

    def __init__(self, folder: Path, model: str, num_rows: int):
        self._process = subprocess.Popen(
            [sys.executable, str(_HERE.with_name("null_engine.py")), model, str(num_rows)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of {folder} has ended; its message is above")
        self._port = int(line.strip().rpartition(":")[2])
        main = psutil.Process(self._process.pid)
        self._processes = [main, *main.children(recursive=True)]

    def measure(self, args: argparse.Namespace, number: int) -> Round:
        """A round: all streams at once."""
        rng = random.Random(number)
        prompts = [random_token_ids(rng, args.input_len) for _ in range(args.streams)]
        before, own = self._cpu_s(), time.process_time()
        started = time.perf_counter()
        num_events = asyncio.run(_stream(self._port, prompts, args.output_len))
        elapsed_s = time.perf_counter() - started
        return Round(
            args.streams * args.output_len,
            num_events,
            elapsed_s,
            self._cpu_s() - before,
            time.process_time() - own,
        )

    def _cpu_s(self) -> float:
        times = [process.cpu_times() for process in self._processes if process.is_running()]
        return sum(each.user + each.system for each in times)

    def close(self) -> None:
        """Ends it as Ctrl-C would."""
        self._process.terminate()
        self._process.wait(60)


async def _stream(port: int, prompts: list[list[int]], output_len: int) -> int:
    """Runs all prompts; returns the number of events that came."""
    loop = asyncio.get_running_loop()
    streams = [_Stream(loop.create_future()) for _ in prompts]
    for stream, prompt in zip(streams, prompts, strict=True):
        transport, _ = await loop.create_connection(lambda s=stream: s, "127.0.0.1", port)
        stream.transport = transport
        stream.body = {
            "prompt": prompt,
            "max_tokens": output_len,
            "stream": True,
            "temperature": 0,
            "ignore_eos": True,
        }
    for stream in streams:
        stream.ask()
    return sum(await asyncio.gather(*(stream.ended for stream in streams)))


class _Stream(asyncio.Protocol):
    """One connection: counts events until its answer ends."""

    transport: asyncio.Transport
    body: dict[str, object]

    def __init__(self, ended: asyncio.Future[int]):
        self.ended = ended
        self._num_events = 0
        self._tail = b""
        self._has_begun = False

    def ask(self) -> None:
        """Sends the request."""
        body = json.dumps(self.body).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)

    def data_received(self, data: bytes) -> None:
        """Counts; an event may be cut anywhere."""
        if not self._has_begun:
            self._has_begun = True
            if b" 200 " not in data[:16]:
                self.ended.set_exception(RuntimeError(f"the server refused: {data[:2000]!r}"))
                return
        text = self._tail + data
        self._num_events += text.count(b"data: ") - self._tail.count(b"data: ")
        self._tail = text[-len(_END) :]
        if self._tail == _END:
            self.ended.set_result(self._num_events - 1)  # the last one says [DONE]
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Without an end before, it has failed."""
        if not self.ended.done():
            self.ended.set_exception(RuntimeError("the server closed a stream before its end"))

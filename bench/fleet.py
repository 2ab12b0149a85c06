"""`bench fleet`: many replicas in a simulation, with the router's own code.

Conversations arrive, each turn is routed by `server.replicas.prefix.ranked` and computed by a model
of a replica; nothing is served. What a replica can do is an argument; what comes out is how routing
changes it. docs/scaling.md draws conclusions.

    replica    prompts one after another at `prefill_rate` (less what is cached), then answers side
               by side at `decode_rate` together; the cache keeps the latest `cache_tokens` tokens
    front      sees a replica's load as of `staleness_s` ago, and its own routing since
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import mean, quantiles

from bench.report import table, write_json
from server.replicas.prefix import PrefixMemory, ranked

CHUNK = 64  # tokens, about BLOCK characters


@dataclass(frozen=True)
class Turn:
    """A request: its prompt as a chain of chunks, and what follows it."""

    conversation: int
    chain: tuple[bytes, ...]
    output_tokens: int
    turns_left: int


@dataclass
class Replica:
    """What a replica has to do, and has cached; times in seconds, sizes in tokens."""

    cache_tokens: int
    prefill_free_s: float = 0.0
    num_running: int = 0
    seen_load: int = 0
    cached: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def take(self, chain: tuple[bytes, ...]) -> int:
        """Tokens of the prompt that are cached; all of them are from now on."""
        hits = next((i for i, chunk in enumerate(chain) if chunk not in self.cached), len(chain))
        for chunk in chain:
            self.cached[chunk] = None
            self.cached.move_to_end(chunk)
        while len(self.cached) * CHUNK > self.cache_tokens:
            self.cached.popitem(last=False)
        return hits * CHUNK


Policy = Callable[[PrefixMemory[int], tuple[bytes, ...], dict[int, int], int], int]


def _by_prefix(
    memory: PrefixMemory[int], chain: tuple[bytes, ...], loads: dict[int, int], slack: int
) -> int:
    return ranked(memory, chain, loads, slack)[0]


def _by_load(
    memory: PrefixMemory[int], chain: tuple[bytes, ...], loads: dict[int, int], slack: int
) -> int:
    """The less busy of two drawn at random, as Ray Serve does by default."""
    return min(random.sample(list(loads), min(2, len(loads))), key=loads.__getitem__)


POLICIES: dict[str, Policy] = {"prefix": _by_prefix, "two choices": _by_load}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replicas", type=int, default=125)
    parser.add_argument("--rate", type=float, default=800.0, help="requests per second, all turns")
    parser.add_argument("--duration-s", type=float, default=60.0, help="simulated, after warm-up")
    parser.add_argument("--warmup-s", type=float, default=60.0)
    parser.add_argument("--prefill-rate", type=float, default=20_000, help="tokens/s of a replica")
    parser.add_argument("--decode-rate", type=float, default=4_000, help="tokens/s of a replica")
    parser.add_argument("--cache-tokens", type=int, default=1_000_000, help="of a replica")
    parser.add_argument("--apps", type=int, default=200, help="system prompts, drawn by Zipf's law")
    parser.add_argument("--system-tokens", type=int, default=2_000)
    parser.add_argument("--turn-tokens", type=int, default=500, help="a question and its answer")
    parser.add_argument("--output-tokens", type=int, default=300)
    parser.add_argument("--turns", type=int, default=4, help="mean turns of a conversation")
    parser.add_argument("--think-s", type=float, default=20.0, help="between turns")
    parser.add_argument("--fronts", type=int, default=8, help="with a memory of their own each")
    parser.add_argument("--slack", type=int, default=16)
    parser.add_argument("--staleness-s", type=float, default=0.1, help="of the loads that are seen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write all figures to this file")


def run(args: argparse.Namespace) -> int:
    """Prints a row for each policy."""
    rows = [(name, *_simulate(policy, args)) for name, policy in POLICIES.items()]
    header = ("policy", "requests", "cached share", "ttft p50 ms", "ttft p99 ms", "load max / mean",
              "router us")  # fmt: skip
    print(table(header, rows))
    write_json(args.json, "fleet", {"columns": header, "rows": rows, "arguments": vars(args)})
    return 0


def _simulate(policy: Policy, args: argparse.Namespace) -> tuple[float, ...]:
    """One row: counts are those after the warm-up."""
    random.seed(args.seed)
    replicas = [Replica(args.cache_tokens) for _ in range(args.replicas)]
    memories: list[PrefixMemory[int]] = [PrefixMemory() for _ in range(args.fronts)]
    end = args.warmup_s + args.duration_s
    numbers = itertools.count()
    # (time, order, what happens): a turn arrives, an answer ends, or fronts learn the loads.
    events: list[tuple[float, int, Turn | int | None]] = [
        (at, next(numbers), turn) for at, turn in _arrivals(args, end)
    ]
    events += [
        (i * args.staleness_s, next(numbers), None) for i in range(int(end / args.staleness_s))
    ]
    heapq.heapify(events)
    ttfts, hits, prompts, spent, imbalance = [], 0, 0, [], []
    while events:
        now, _, event = heapq.heappop(events)
        if now > end:
            break
        if event is None:
            for replica in replicas:
                replica.seen_load = replica.num_running
            if now > args.warmup_s:
                running = [replica.num_running for replica in replicas]
                imbalance.append(max(running) / max(mean(running), 1e-9))
            continue
        if isinstance(event, int):
            replicas[event].num_running -= 1
            continue
        memory = memories[event.conversation % args.fronts]
        began = time.thread_time()
        loads = {i: replica.seen_load for i, replica in enumerate(replicas)}
        number = policy(memory, event.chain, loads, args.slack)
        memory.note(event.chain, number)
        spent.append(time.thread_time() - began)
        replica = replicas[number]
        cached = replica.take(event.chain)
        first, last = _serve(replica, event, cached, now, args)
        heapq.heappush(events, (last, next(numbers), number))
        if event.turns_left:
            later = last + random.expovariate(1 / args.think_s)
            heapq.heappush(events, (later, next(numbers), _next_turn(event, args)))
        if now > args.warmup_s:
            ttfts.append(first - now)
            hits, prompts = hits + cached, prompts + len(event.chain) * CHUNK
    cuts = quantiles(ttfts, n=100)
    return (len(ttfts), hits / prompts, 1e3 * cuts[49], 1e3 * cuts[98], mean(imbalance),
            1e6 * mean(spent))  # fmt: skip


def _serve(
    replica: Replica, turn: Turn, cached: int, now: float, args: argparse.Namespace
) -> tuple[float, float]:
    """When the first token of an answer comes, and the last."""
    tokens = max(len(turn.chain) * CHUNK - cached, CHUNK)
    first = max(now, replica.prefill_free_s) + tokens / args.prefill_rate
    replica.prefill_free_s = first
    replica.num_running += 1
    replica.seen_load += 1  # the front that routed it knows
    per_token = max(replica.num_running / args.decode_rate, 0.01)
    return first, first + turn.output_tokens * per_token


def _arrivals(args: argparse.Namespace, end: float) -> Iterator[tuple[float, Turn]]:
    """First turns of conversations, and where those before time 0 would be by now."""
    weights = [1 / (i + 1) for i in range(args.apps)]
    now = 0.0
    for number in itertools.count():
        now += random.expovariate(args.rate / args.turns)
        if now > end:
            return
        (app,) = random.choices(range(args.apps), weights)
        turns = min(int(random.expovariate(1 / args.turns)) + 1, 32)
        shared = _chunks(f"app {app}", args.system_tokens)
        own = _chunks(f"conversation {number} turn 0", args.turn_tokens)
        output_tokens = int(random.expovariate(1 / args.output_tokens)) + 1
        yield now, Turn(number, shared + own, output_tokens, turns - 1)


def _next_turn(turn: Turn, args: argparse.Namespace) -> Turn:
    own = _chunks(f"conversation {turn.conversation} left {turn.turns_left}", args.turn_tokens)
    output_tokens = int(random.expovariate(1 / args.output_tokens)) + 1
    return Turn(turn.conversation, turn.chain + own, output_tokens, turn.turns_left - 1)


def _chunks(name: str, num_tokens: int) -> tuple[bytes, ...]:
    return tuple(f"{name} {i}".encode() for i in range(-(-num_tokens // CHUNK)))

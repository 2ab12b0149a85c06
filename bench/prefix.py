"""`bench prefix`: what a shared prefix saves.

Each round sends a request with a new random prefix, then one with that prefix and another ending.
They are alone on the server, so ttft is the prefill, and HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from statistics import median

import aiohttp

from bench.client import BenchClient
from bench.report import table, write_json
from bench.serve import add_server_arguments
from bench.stats import RequestRecord, ratio
from bench.workload import random_token_ids

OUTPUT_LEN = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_arguments(parser)
    parser.add_argument("--prefix-len", type=int, default=1000, help="tokens shared")
    parser.add_argument("--suffix-len", type=int, default=16, help="tokens of its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-warmup", type=int, default=1, help="rounds before measuring")


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 1 if any request failed, as a round needs both."""
    try:
        rounds = asyncio.run(_measure(args))
    except (aiohttp.ClientError, TimeoutError) as error:
        print(f"cannot list the models of {args.url}: {error}; is the server up? Or pass --model.")
        return 1
    failed = [record.error for pair in rounds for record in pair if record.error]
    if failed:
        print(f"{len(failed)} requests failed: {failed[0]}")
        return 1
    rows = [_row(number, *pair) for number, pair in enumerate(rounds, start=1)]
    medians = [median(column) for column in list(zip(*rows, strict=True))[1:]]
    header = ("round", "cold ttft ms", "shared ttft ms", "cold / shared", "cached tokens")
    print(table(header, [*rows, ("median", *medians)]))
    write_json(args.json, "prefix", {"columns": header, "rounds": rows, "medians": medians})
    return 0


async def _measure(args: argparse.Namespace) -> list[tuple[RequestRecord, RequestRecord]]:
    rng = random.Random(args.seed)
    rounds: list[tuple[RequestRecord, RequestRecord]] = []
    async with BenchClient(
        args.url, model=args.model, api_key=args.api_key, timeout_s=args.timeout_s
    ) as client:
        await client.resolve_model()
        for _ in range(args.num_warmup + args.rounds):
            prefix = random_token_ids(rng, args.prefix_len)
            cold, shared = (_body(prefix, rng, args.suffix_len) for _ in range(2))
            rounds.append((await client.run(cold), await client.run(shared)))
    return rounds[args.num_warmup :]


def _body(prefix: list[int], rng: random.Random, suffix_len: int) -> dict[str, object]:
    prompt = prefix + random_token_ids(rng, suffix_len)
    return {"prompt": prompt, "max_tokens": OUTPUT_LEN, "temperature": 0.0}


def _row(
    number: int, cold: RequestRecord, shared: RequestRecord
) -> tuple[int, float, float, float, int]:
    cold_ms, shared_ms = 1e3 * (cold.ttft_s or 0.0), 1e3 * (shared.ttft_s or 0.0)
    return number, cold_ms, shared_ms, ratio(cold_ms, shared_ms), shared.num_cached_tokens

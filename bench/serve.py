"""`bench serve`: load on an OpenAI-compatible server, and its latencies and throughput then."""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import asdict

import aiohttp

from bench.client import BenchClient
from bench.load import closed_loop, open_loop
from bench.report import table, write_json
from bench.stats import Distribution, RequestRecord, Summary, summarize
from bench.workload import Workload

# Warm-up prompts are others than the measured ones: a prefix cache must not have seen those.
WARMUP_SEED_OFFSET = 1_000_003


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what every benchmark of a running server needs."""
    parser.add_argument("--url", default="http://localhost:8088/v1", help="root of the API")
    parser.add_argument("--model", help="default: the first that the server lists")
    parser.add_argument("--api-key")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="limit for one request")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write results here")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_arguments(parser)
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument("--clients", type=int, default=8, help="closed loop with this many clients")
    loop.add_argument("--rate", type=float, help="open loop: Poisson arrivals, requests a second")
    parser.add_argument("--num-requests", type=int, default=64)
    parser.add_argument("--num-warmup", type=int, default=4, help="requests before measuring")
    parser.add_argument("--endpoint", choices=("completions", "chat"), default="completions")
    parser.add_argument("--lengths", choices=("fixed", "sharegpt"), default="fixed")
    parser.add_argument("--input-len", type=int, default=128, help="tokens, with fixed lengths")
    parser.add_argument("--output-len", type=int, default=128, help="tokens, with fixed lengths")
    parser.add_argument("--max-input-len", type=int, default=1024, help="cut of drawn lengths")
    parser.add_argument("--max-output-len", type=int, default=1024, help="cut of drawn lengths")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--ignore-eos", action="store_true", help="send ignore_eos")
    parser.add_argument("--plot", metavar="FILE", help="write a picture (png, svg, pdf)")


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 1 if the server cannot be used or no request was answered."""
    workload = Workload(
        endpoint=args.endpoint,
        lengths=args.lengths,
        input_len=args.input_len,
        output_len=args.output_len,
        max_input_len=args.max_input_len,
        max_output_len=args.max_output_len,
        temperature=args.temperature,
        ignore_eos=args.ignore_eos,
    )
    try:
        records, host_share = asyncio.run(_measure(args, workload))
    except (aiohttp.ClientError, TimeoutError) as error:
        print(f"cannot list the models of {args.url}: {error}; is the server up? Or pass --model.")
        return 1
    summary = summarize(records)
    title = f"{args.rate:g} requests/s" if args.rate else f"{args.clients} clients"
    print(_report(summary, title))
    if host_share is not None:
        engine, loop = host_share
        print(f"of the time: engine thread not waiting {engine:.1%}, event loop {loop:.1%}")
    results = {"workload": asdict(workload), "load": title, "seed": args.seed}
    write_json(
        args.json, "serve", {**results, "host_share": host_share, "summary": summary.as_dict()}
    )
    if summary.num_errors == summary.num_requests:
        return 1
    if args.plot:
        from bench.plot import plot_run  # matplotlib takes a second to import

        plot_run(args.plot, records, f"{title}, {_describe(workload)}")
        print(f"wrote {args.plot}")
    return 0


async def _measure(
    args: argparse.Namespace, workload: Workload
) -> tuple[list[RequestRecord], tuple[float, float] | None]:
    """The requests, and which share of the time each of the server's two threads was at work."""
    async with BenchClient(
        args.url, model=args.model, api_key=args.api_key, timeout_s=args.timeout_s
    ) as client:
        await client.resolve_model()
        warmup = workload.requests(args.num_warmup, args.seed + WARMUP_SEED_OFFSET)
        await closed_loop(client, warmup, max(1, min(args.num_warmup, args.clients)))
        bodies = workload.requests(args.num_requests, args.seed)
        before, started = await client.host_seconds(), time.perf_counter()
        if args.rate:
            records = await open_loop(client, bodies, rate=args.rate, seed=args.seed)
        else:
            records = await closed_loop(client, bodies, args.clients)
        after, wall_s = await client.host_seconds(), time.perf_counter() - started
    if before is None or after is None:
        return records, None
    return records, ((after[0] - before[0]) / wall_s, (after[1] - before[1]) / wall_s)


def _describe(workload: Workload) -> str:
    if workload.lengths == "sharegpt":
        return f"{workload.endpoint}, ShareGPT-like lengths"
    return f"{workload.endpoint}, {workload.input_len} in, {workload.output_len} out"


def _report(summary: Summary, title: str) -> str:
    latencies = {
        "ttft ms": summary.ttft_s,
        "tpot ms": summary.tpot_s,
        "itl ms": summary.itl_s,
        "e2e ms": summary.e2e_s,
    }
    lines = [
        f"{title}: {summary.num_requests} requests, {summary.num_errors} errors,"
        f" {summary.duration_s:.1f} s",
        f"tokens: {summary.num_prompt_tokens} prompt ({summary.num_cached_tokens} cached),"
        f" {summary.num_output_tokens} output, {summary.tokens_per_event:.2f} per event",
        f"throughput: {summary.request_throughput:.2f} requests/s,"
        f" {summary.output_throughput:.1f} output tokens/s",
        "",
        table(
            ("", "mean", "p50", "p90", "p99", "n"),
            [(name, *_milliseconds(values)) for name, values in latencies.items()],
        ),
        *(f"error x{count}: {reason}" for reason, count in summary.errors.items()),
    ]
    return "\n".join(lines)


def _milliseconds(values: Distribution) -> tuple[object, ...]:
    if not values.count:
        return (None, None, None, None, 0)
    return (*(1e3 * v for v in (values.mean, values.p50, values.p90, values.p99)), values.count)

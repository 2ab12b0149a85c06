"""`bench offline`: the engine without HTTP, at fixed lengths, beside transformers' `generate`.

`--compare int8` (or int4, fp8) stands the engine beside itself with its weights quantized.
With `--constrained N`, N rows of each batch follow a grammar, and the engine stands beside itself
without any: the ratio says what they cost all rows together. With `--drafts N` it stands beside
itself without drafts: give it text to repeat (`--repeat 4`), or none that repeats
(`--temperature 2`, since greedy answers to random prompts soon go round in circles).

Rounds alternate between the sides, so that a machine that slows down slows both; the ratio is taken
round by round, and its median reported.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

from bench.model import add_model, find_model
from bench.report import busy_share, table, write_json
from bench.side import Generated, SideError, SideProcess
from bench.stats import ratio
from bench.workload import random_token_ids
from rtpjax.models.quantization import METHODS

ENGINE = "rtpjax"
UNCONSTRAINED = "unconstrained"
UNDRAFTED = "no drafts"
MAX_BUSY_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rounds of one batch size: for each side a list, and its runs pair up by index."""

    batch_size: int
    rounds: dict[str, list[Generated]]

    def rates(self, name: str) -> list[float]:
        """Output tokens a second, prefill included, round by round."""
        return [ratio(run.num_output_tokens, run.elapsed_s) for run in self.rounds[name]]

    def ratios(self, other: str) -> list[float]:
        """How many times the other side's rate the engine has, round by round."""
        pairs = zip(self.rates(ENGINE), self.rates(other), strict=True)
        return [ratio(ours, theirs) for ours, theirs in pairs]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, has_dummy=True)
    parser.add_argument("--batch-sizes", type=_int_list, default="1,8,32")
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--compare",
        choices=("transformers", *METHODS),
        help="measure it side by side: transformers, or the engine with quantized weights",
    )
    parser.add_argument(
        "--constrained", type=int, default=0, help="rows that follow a grammar, beside none"
    )
    parser.add_argument(
        "--drafts", type=int, default=0, help="tokens drafted for a row, beside none"
    )
    parser.add_argument(
        "--repeat", type=int, default=1, help="prompts are a passage, so many times over"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="of our own sides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write results here")


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 1 if a side failed."""
    busy = busy_share()
    if busy is not None and busy > MAX_BUSY_SHARE:
        print(f"warning: others use {busy:.0%} of this machine's cores; do not publish this run")
    if args.compare == "transformers" and args.load_format == "dummy":
        print("transformers cannot make our random weights: leave --load-format out, or --compare")
        return 1
    model = find_model(args)
    own = partial(_start_engine, model, temperature=args.temperature)
    sides = [own(ENGINE, num_constrained=args.constrained, drafts=args.drafts)]
    if args.constrained:
        sides.append(own(UNCONSTRAINED, drafts=args.drafts))
    if args.drafts:
        sides.append(own(UNDRAFTED, num_constrained=args.constrained))
    if args.compare in METHODS:
        sides.append(own(args.compare, quantization=args.compare))
    elif args.compare:
        sides.append(_start(args.compare, f"bench.{args.compare}_side", model))
    comparisons: list[Comparison] = []
    try:
        for batch_size in args.batch_sizes:
            comparisons.append(measure(sides, batch_size, args))
            print(_describe(comparisons[-1]))
    except SideError as error:
        print(error)
        return 1
    finally:
        for side in sides:
            side.close()
    print(report(comparisons))
    write_json(
        args.json,
        "offline",
        {"busy_share_before": busy, "results": [_as_dict(c) for c in comparisons]},
    )
    return 0


def measure(sides: Sequence[SideProcess], batch_size: int, args: argparse.Namespace) -> Comparison:
    """Measures all sides on the same prompts, in turns, after one warm-up each."""
    rng = random.Random(f"{args.seed} {batch_size}")
    rounds: dict[str, list[Generated]] = {side.name: [] for side in sides}
    for number in range(args.rounds + 1):
        # New prompts each round: a prefix cache would otherwise spare one side the prefill.
        prompts = [_prompt(rng, args.input_len, args.repeat) for _ in range(batch_size)]
        for side in sides:
            generated = side.generate(prompts, args.output_len)
            if number > 0:
                rounds[side.name].append(generated)
    return Comparison(batch_size, rounds)


def _prompt(rng: random.Random, length: int, repeat: int) -> list[int]:
    passage = random_token_ids(rng, -(-length // repeat))
    return (passage * repeat)[:length]


def report(comparisons: Sequence[Comparison]) -> str:
    """Returns a table of medians with a row per batch size."""
    others = [name for name in comparisons[0].rounds if name != ENGINE]
    header = ["batch", f"{ENGINE} tok/s", "host share"]
    for name in others:
        header += [f"{name} tok/s", "dtype", "ratio", "lowest", "highest"]
    rows = []
    for comparison in comparisons:
        row: list[object] = [comparison.batch_size, median(comparison.rates(ENGINE))]
        row.append(_host_share(comparison))
        for name in others:
            ratios = comparison.ratios(name)
            note = comparison.rounds[name][0].note
            row += [median(comparison.rates(name)), note, median(ratios), min(ratios), max(ratios)]
        rows.append(row)
    return table(header, rows)


def _describe(comparison: Comparison) -> str:
    rates = {name: [round(r, 1) for r in comparison.rates(name)] for name in comparison.rounds}
    return f"batch {comparison.batch_size}, output tokens/s by round: {rates}"


def _as_dict(comparison: Comparison) -> dict[str, object]:
    others = [name for name in comparison.rounds if name != ENGINE]
    return asdict(comparison) | {
        "median_rates": {name: median(comparison.rates(name)) for name in comparison.rounds},
        "ratios": {name: comparison.ratios(name) for name in others},
        "median_ratios": {name: median(comparison.ratios(name)) for name in others},
        "host_share": _host_share(comparison),
    }


def _host_share(comparison: Comparison) -> float | None:
    shares = [r.host_share for r in comparison.rounds[ENGINE] if r.host_share is not None]
    return median(shares) if shares else None


def _start_engine(model: str, name: str, **options: Any) -> SideProcess:
    return _start(name, "bench.engine_side", model, json.dumps(options))


def _start(name: str, module: str, *args: str) -> SideProcess:
    # OpenMP's threads, which torch uses, spin while they wait. If anything else runs on the machine
    # they take the cores from their own workers: 1.3 tokens/s instead of 12 was seen. Whoever sets
    # the variable decides.
    env = {"OMP_WAIT_POLICY": "passive"} | os.environ
    return SideProcess(name, [sys.executable, "-m", module, *args], env)


def _int_list(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]

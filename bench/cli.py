"""`bench COMMAND`, one of COMMANDS, also reached as `rtpjax bench ...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench import (
    cache_quality,
    fleet,
    host_work,
    http_host,
    offline,
    prefix,
    quality,
    serve,
    soak,
    step,
)
from rtpjax.errors import CheckpointError, ConfigError

COMMANDS = {
    "serve": (serve, "load on a running server: latencies and throughput"),
    "soak": (soak, "many clients for long, a quarter of which misbehave"),
    "offline": (offline, "the engine without HTTP, beside transformers"),
    "quality": (quality, "perplexity and greedy agreement of quantized weights"),
    "step": (step, "one decode step with quantized weights beside bf16"),
    "host": (host_work, "what a step costs the host on one and on many devices"),
    "http": (http_host, "what a token costs the host through HTTP, without a device"),
    "prefix": (prefix, "what a shared prefix saves on a running server"),
    "cache-quality": (cache_quality, "what int8 and fp8 caches cost in quality"),
    "fleet": (fleet, "many replicas and their router, simulated"),
}


def main(argv: Sequence[str] | None = None, prog: str = "bench") -> int:
    """Runs one benchmark and returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="Benchmarks of an LLM server.")
    commands = parser.add_subparsers(required=True, metavar="|".join(COMMANDS))
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (CheckpointError, ConfigError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1

"""`bench serve|offline|prefix|fleet`, also reached as `rtpjax bench ...`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bench import fleet, offline, prefix, serve

COMMANDS = {
    "serve": (serve, "load on a running server: latencies and throughput"),
    "offline": (offline, "the engine without HTTP, beside transformers"),
    "prefix": (prefix, "what a shared prefix saves on a running server"),
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
    return args.run(args)

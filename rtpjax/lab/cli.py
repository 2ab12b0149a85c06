"""The command `rtpjax lab`."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rtpjax.errors import ConfigError
from rtpjax.lab import record, report
from rtpjax.lab.driver import Visit, drive
from rtpjax.lab.stages import STAGES
from rtpjax.plan import presets

_LARGE, _SMALLER = "llama-3.1-8b", "qwen2.5-0.5b"
_LARGE_NEEDS_MIB = 36_000  # weights, and 64 rows of context
_DEADLINE_S = 480.0
_TESTED_JAX = (0, 10), (0, 12)
# A model of the same kind in miniature; `bench serve` draws token ids below 20,000.
MINIATURE = {
    "num_hidden_layers": 1,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 20_480,
    "max_position_embeddings": 512,
}


def main(argv: Sequence[str] | None = None, *, cache: Path) -> int:
    """Runs the lab; 0 if all stages ran, 1 if one did not, 2 for a setting without meaning."""
    args = parser().parse_args(argv)
    try:
        visit = visit_of(args, sys.argv[1:] if argv is None else argv, cache)
    except ConfigError as error:
        print(f"rtpjax lab: {error}", file=sys.stderr)
        return 2
    for line in _remarks(args):
        print(f"rtpjax lab: {line}", file=sys.stderr)
    if not args.small and not _nvidia_smi("name"):
        print(
            "rtpjax lab: nvidia-smi finds no NVIDIA GPU here. `rtpjax lab --small` runs all stages "
            "in miniature on the CPU.",
            file=sys.stderr,
        )
        return 2
    ends = drive(visit)
    lines = record.read(visit.results)
    print(report.table(lines, visit.model_name))
    print(f"\n{visit.out / 'lab.md'} has it with what was predicted and what follows.")
    is_whole = all(end.outcome == "ok" or end.outcome.startswith("left out") for end in ends)
    return 0 if is_whole and ends and not any("error" in line for line in lines) else 1


def parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:18} {stage.what}" for name, stage in STAGES.items())
    parser = argparse.ArgumentParser(
        prog="rtpjax lab",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures everything that a short visit to a GPU can tell, in order of worth: "
        "results.jsonl as it comes,\nlab.md at the end, with measured beside predicted.\n\n"
        f"stages:\n{known}",
    )
    parser.add_argument("--out", type=Path, help="folder of the results (default: lab-DATE)")
    parser.add_argument("--stages", help="only these, separated by commas, in this order")
    parser.add_argument(
        "--deadline", type=float, default=_DEADLINE_S, help="seconds of all (default: %(default)g)"
    )
    parser.add_argument("--small", action="store_true", help="in miniature, on the CPU")
    parser.add_argument(
        "--model",
        help=f"a preset or a config.json (default: {_LARGE}, {_SMALLER} where memory is short)",
    )
    parser.add_argument("--gpu", help="data sheet to measure against, a name or a .toml file")
    return parser


def visit_of(args: argparse.Namespace, argv: Sequence[str], cache: Path) -> Visit:
    wanted = args.stages.split(",") if args.stages else list(STAGES)
    unknown = [name for name in wanted if name not in STAGES]
    if unknown:
        raise ConfigError(f"There is no stage {', '.join(unknown)}; there are {', '.join(STAGES)}.")
    if args.deadline <= 0:
        raise ConfigError(f"--deadline is {args.deadline:g}; it takes seconds, over 0.")
    out: Path = args.out or Path(f"lab-{datetime.now():%Y-%m-%d-%H%M%S}")
    if (out / "results.jsonl").exists():
        raise ConfigError(f"{out} has results of another visit: name a new folder with --out.")
    out.mkdir(parents=True, exist_ok=True)
    name, config = _model(args)
    path = out / "model" / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(config, indent=1))
    return Visit(
        out=out,
        stages=wanted,
        deadline_s=args.deadline,
        is_small=args.small,
        model=path.resolve(),
        model_name=f"{name}, in miniature" if args.small else name,
        gpu=args.gpu or ("h100" if args.small else None),
        cache=cache / "lab",
        command=shlex.join(["rtpjax", "lab", *argv]),
    )


def _model(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The model's name and its config.json."""
    memory = _nvidia_smi("memory.total")
    has_room = args.small or not memory or float(memory.split()[0]) >= _LARGE_NEEDS_MIB
    name = args.model or (_LARGE if has_room else _SMALLER)
    if name in presets.names():
        config = presets.load(name)
    else:
        try:
            config = json.loads(Path(name).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--model is {name!r}: neither a config.json ({error}) nor one of "
                f"{', '.join(presets.names())}."
            ) from error
    return name, config | MINIATURE if args.small else config


def _remarks(args: argparse.Namespace) -> list[str]:
    """What a person should know before the figures."""
    found = []
    version = importlib.metadata.version("jax")
    parts = tuple(int(part) for part in version.split(".")[:2])
    least, most = _TESTED_JAX
    if not least <= parts <= most:
        found.append(
            f"JAX is {version}; rtpjax is tested with {least[0]}.{least[1]} to "
            f"{most[0]}.{most[1]}. Install one of these if stages fail."
        )
    driver = _nvidia_smi("driver_version")
    if not args.small and driver and float(driver.split(".")[0]) < 525:
        found.append(f"The driver is {driver}; CUDA 12 needs 525 or later, CUDA 13 needs 580.")
    return found


def _nvidia_smi(field: str) -> str:
    """A field of the first GPU; empty where there is none."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else ""

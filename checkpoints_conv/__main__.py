"""Command line: python -m checkpoints_conv SRC DST [--format F] [--dtype D] [--tp N] [--force]."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from checkpoints_conv.convert import DTYPES, Conversion, convert
from checkpoints_conv.writers import WRITERS
from rtpjax.errors import CheckpointError, ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Converts; returns the exit status."""
    args = _parser().parse_args(argv)
    if args.tp > 1:
        if args.format == "safetensors":
            print("error: --tp lays out orbax checkpoints; leave --format out.", file=sys.stderr)
            return 2
        if jax.config.jax_num_cpu_devices < args.tp:  # orbax stores what each device keeps
            jax.config.update("jax_num_cpu_devices", args.tp)
    format_ = args.format or ("orbax" if args.tp > 1 else "safetensors")
    options = Conversion(format=format_, dtype=args.dtype, tp=args.tp, force=args.force)
    try:
        convert(args.source, args.destination, options)
    except (CheckpointError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.destination}: {format_}, {args.dtype}, complete")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rtpjax convert", description="Converts a checkpoint.")
    parser.add_argument(
        "source",
        type=Path,
        metavar="SRC",
        help="Hugging Face folder, converted folder or .gguf file",
    )
    parser.add_argument("destination", type=Path, metavar="DST", help="folder to write")
    parser.add_argument(
        "--format", choices=list(WRITERS), help="default: safetensors; orbax with --tp"
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", *DTYPES],
        default="auto",
        help="auto: as stored, and quantized weights as bfloat16 (default)",
    )
    parser.add_argument(
        "--tp",
        type=int,
        default=1,
        metavar="N",
        help="orbax in the pieces that each of N devices reads; any number can restore it",
    )
    parser.add_argument("--force", action="store_true", help="replace DST if it is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())

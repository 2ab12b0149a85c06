"""Command line: python -m checkpoints_conv SRC DST; --help lists the options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from checkpoints_conv.convert import DTYPES, Conversion, convert
from checkpoints_conv.writers import WRITERS
from rtpjax.errors import CheckpointError, ConfigError
from rtpjax.models.quantization import METHODS


def main(argv: Sequence[str] | None = None) -> int:
    """Converts; returns the exit status."""
    args = _parser().parse_args(argv)
    if args.group_size is not None and args.quantize != "int4":
        print("error: --group-size is for --quantize int4.", file=sys.stderr)
        return 1
    if args.tp > 1:
        if args.format == "safetensors":
            print("error: --tp lays out orbax checkpoints; leave --format out.", file=sys.stderr)
            return 2
        if (
            jax.config.values["jax_num_cpu_devices"] < args.tp
        ):  # orbax stores what each device keeps
            jax.config.update("jax_num_cpu_devices", args.tp)
    options = Conversion(
        format=args.format or ("orbax" if args.tp > 1 else "safetensors"),
        dtype=args.dtype,
        quantize=args.quantize,
        group=args.group_size,
        tp=args.tp,
        force=args.force,
    )
    try:
        convert(args.source, args.destination, options)
    except (CheckpointError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.destination}: {options.format}, {args.quantize or args.dtype}, complete")
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
        "--quantize",
        choices=list(METHODS),
        type=str.lower,
        help="quantize matrices; --dtype is then of the rest (compressed-tensors' layout)",
    )
    parser.add_argument(
        "--group-size", type=int, help="int4: inputs that share a scale (default: 128, or less)"
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

"""Command line: python -m checkpoints_conv SRC DST [--format F] [--dtype D] [--quantize Q]."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from checkpoints_conv.convert import DTYPES, Conversion, convert
from checkpoints_conv.writers import WRITERS
from rtpjax.errors import CheckpointError
from rtpjax.models.quantization import METHODS


def main(argv: Sequence[str] | None = None) -> int:
    """Converts; returns the exit status."""
    args = _parser().parse_args(argv)
    options = Conversion(
        format=args.format,
        dtype=args.dtype,
        quantize=args.quantize,
        group=args.group_size,
        force=args.force,
    )
    if args.group_size is not None and args.quantize != "int4":
        print("error: --group-size is for --quantize int4.", file=sys.stderr)
        return 1
    try:
        convert(args.source, args.destination, options)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.destination}: {args.format}, {args.quantize or args.dtype}, complete")
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
        "--format", choices=list(WRITERS), default="safetensors", help="default: %(default)s"
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
    parser.add_argument("--force", action="store_true", help="replace DST if it is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The model that a benchmark of the engine measures: a checkpoint, or random weights."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rtpjax.served_model import resolve_checkpoint
from rtpjax.start_server import read_settings


def add_model(parser: argparse.ArgumentParser, *, has_dummy: bool) -> None:
    """Adds --model; and --load-format where random weights measure the same as others."""
    parser.add_argument("--model", required=True, help="checkpoint folder, .gguf file or hub id")
    if has_dummy:
        parser.add_argument(
            "--load-format",
            choices=("auto", "dummy"),
            default="auto",
            help="dummy: random weights of a config.json, or a preset (rtpjax/plan/models)",
        )


def find_model(args: argparse.Namespace) -> str:
    """The path that open_checkpoint and load_tokenizer take.

    Raises:
        CheckpointError: It is neither there nor to be had.
    """
    cache: Path = read_settings((), os.environ)["RTPJAX_CACHE"].expanduser()
    load_format = getattr(args, "load_format", "auto")
    return str(resolve_checkpoint(args.model, cache, load_format))

"""`rtpjax check`: a table that grows, `--json` for scripts, exit status 1 if anything is wrong."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from rtpjax.check.results import HEADER, Result, brief, is_ok, line
from rtpjax.checkpoint import Checkpoint
from rtpjax.errors import CheckpointError, ConfigError, EngineError

FindModel = Callable[[str | None, str | None], Path]  # --model, --load-format
OpenCheckpoint = Callable[[Path], Checkpoint]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rtpjax check",
        description="Compares every GPU kernel with its plain twin on this machine's GPU, a short "
        "greedy generation with the CPU's, and measures the decode step's bandwidth beside the "
        "limit of `rtpjax plan`. Without a GPU kernels run in interpret mode.",
    )
    parser.add_argument("--model", help="folder, .gguf file or hub id (default: as in serve)")
    parser.add_argument(
        "--load-format",
        choices=("auto", "dummy"),
        help="dummy: random weights of a config.json or preset (default: LOAD_FORMAT, or auto)",
    )
    parser.add_argument(
        "--act-type",
        choices=("FP32", "BF16", "FP16"),
        default="FP32",
        help="of the generation: tokens of FP32 have to be the same, of others agreement is told",
    )
    parser.add_argument("--gpu", help="a name, or a .toml file that describes it")
    parser.add_argument(
        "--all", action="store_true", help="without a GPU too, every shape (takes much longer)"
    )
    parser.add_argument("--only", default="", help="only ops whose name contains this")
    parser.add_argument(
        "--implementation",
        action="append",
        default=[],
        metavar="NAME",
        help="only these (pallas, xla, mosaic); may be repeated",
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="not these; may be repeated"
    )
    parser.add_argument(
        "--parallel",
        type=int,
        metavar="N",
        help="cases that are compiled at a time (default: the machine's cores)",
    )
    parser.add_argument(
        "--case-limit",
        type=float,
        metavar="S",
        help="seconds that a case may take to compile, and again to run "
        "(default: 20; without a GPU 600)",
    )
    parser.add_argument("--no-generation", action="store_true", help="only check the kernels")
    parser.add_argument(
        "--json", action="store_true", help="for scripts: an object a line, as results come"
    )
    parser.add_argument("--print-tokens", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(
    argv: Sequence[str] | None, *, find_model: FindModel, open_checkpoint: OpenCheckpoint
) -> int:
    """Prints what was found; 0 if all is well, 1 if not, 2 for a setting that has no meaning."""
    args = _parser().parse_args(argv)
    # Kernels are checked by processes that use the same device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        if args.print_tokens:
            return _print_tokens(args, find_model, open_checkpoint)
        platform, kind = _device()
        results = _results(args, find_model, open_checkpoint)
        return _report(args, kind, results, is_gpu=platform == "gpu")
    except ConfigError as error:
        print(f"rtpjax check: {error}", file=sys.stderr)
        return 2


def _device() -> tuple[str, str]:
    """Platform and kind of the device to be checked.

    Raises:
        ConfigError: JAX finds none.
    """
    try:
        device = jax.devices()[0]
    except RuntimeError as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError(
            f"JAX finds no device (JAX_PLATFORMS={asked!r}): {brief(error)} See whether "
            "nvidia-smi lists the GPU; JAX_PLATFORMS=cpu checks in interpret mode."
        ) from error
    return device.platform, device.device_kind


def _print_tokens(
    args: argparse.Namespace, find_model: FindModel, open_checkpoint: OpenCheckpoint
) -> int:
    from rtpjax.check.generation import Model, greedy_tokens

    model = Model(find_model(args.model, args.load_format), open_checkpoint)
    print(json.dumps(greedy_tokens(model, args.act_type)))
    return 0


def _results(
    args: argparse.Namespace, find_model: FindModel, open_checkpoint: OpenCheckpoint
) -> Iterator[Result]:
    from pallas_kernels.registry import current_target
    from rtpjax import gpus
    from rtpjax.check.kernels import check_kernels

    if args.gpu is not None:
        gpus.load(args.gpu)  # a name that is not known is said before anything runs
    target = current_target()
    yield from check_kernels(
        target,
        every_shape=args.all,
        only=args.only,
        implementations=args.implementation,
        without=args.without,
        parallel=args.parallel,
        case_limit_s=args.case_limit,
    )
    if args.no_generation:
        return
    try:
        yield from _generation(args, target.platform, find_model, open_checkpoint)
    except (CheckpointError, EngineError, jax.errors.JaxRuntimeError) as error:
        yield Result("generation", "", "FAILED", brief(error))


def _generation(
    args: argparse.Namespace,
    platform: str,
    find_model: FindModel,
    open_checkpoint: OpenCheckpoint,
) -> Iterator[Result]:
    from rtpjax.check import generation

    gpu = generation.find_gpu(args.gpu)
    model = generation.Model(find_model(args.model, args.load_format), open_checkpoint)
    if platform != "gpu":
        yield generation.check_interpreted(model)
        yield Result("decode step", "", "skipped", "no GPU whose bandwidth could be measured")
        return
    yield generation.check_generation(model, args.act_type)
    yield from generation.measure_bandwidth(model, gpu)


def _report(args: argparse.Namespace, kind: str, results: Iterator[Result], *, is_gpu: bool) -> int:
    """Prints each result when it comes."""
    started = time.perf_counter()
    mode = "" if is_gpu else ": no GPU here, kernels run in interpret mode on the CPU"
    first = {"device": kind, "interpreted": not is_gpu}
    print(json.dumps(first) if args.json else f"{kind}{mode}\n{HEADER}", flush=True)
    found = []
    for result in results:
        found.append(result)
        print(result.to_json() if args.json else line(result), flush=True)
    ok = is_ok(found)
    failed, not_run = (
        sum(result.status == status for result in found) for status in ("FAILED", "not run")
    )
    counts = {"checks": len(found), "failed": failed, "not_run": not_run}
    seconds = round(time.perf_counter() - started, 1)
    if args.json:
        print(json.dumps({"ok": ok, **counts, "seconds": seconds}), flush=True)
    else:
        print(f"{len(found)} checks in {seconds} s, {failed} failed, {not_run} not run.")
    return 0 if ok else 1

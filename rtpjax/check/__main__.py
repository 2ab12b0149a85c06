"""`rtpjax check`: one table, `--json` for scripts, exit status 1 if anything is wrong."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rtpjax.check.results import HEADER, Result, is_ok, line
from rtpjax.checkpoint import Checkpoint
from rtpjax.errors import CheckpointError, ConfigError

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
    parser.add_argument("--no-generation", action="store_true", help="only check the kernels")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("--print-tokens", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(
    argv: Sequence[str] | None, *, find_model: FindModel, open_checkpoint: OpenCheckpoint
) -> int:
    """Prints what was found; 0 if all is well, 1 if not, 2 for a setting that has no meaning."""
    args = _parser().parse_args(argv)
    try:
        if args.print_tokens:
            return _print_tokens(args, find_model, open_checkpoint)
        return _report(args, _results(args, find_model, open_checkpoint))
    except ConfigError as error:
        print(f"rtpjax check: {error}", file=sys.stderr)
        return 2


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
    from rtpjax.check.kernels import check_kernels

    target = current_target()
    yield from check_kernels(target, every_shape=args.all, only=args.only)
    if args.no_generation:
        return
    from rtpjax.check import generation

    gpu = generation.find_gpu(args.gpu)
    try:
        model = generation.Model(find_model(args.model, args.load_format), open_checkpoint)
    except CheckpointError as error:
        yield Result("generation", "", "FAILED", str(error))
        return
    if target.platform != "gpu":
        yield generation.check_interpreted(model)
        yield Result("decode step", "", "skipped", "no GPU whose bandwidth could be measured")
        return
    yield generation.check_generation(model, args.act_type)
    yield from generation.measure_bandwidth(model, gpu)


def _report(args: argparse.Namespace, results: Iterator[Result]) -> int:
    import jax

    device = jax.devices()[0]
    is_gpu = device.platform == "gpu"
    mode = "" if is_gpu else ": no GPU here, kernels run in interpret mode on the CPU"
    if not args.json:
        print(f"{device.device_kind}{mode}\n{HEADER}", flush=True)
    found = []
    for result in results:
        found.append(result)
        if not args.json:
            print(line(result), flush=True)
    ok = is_ok(found)
    if args.json:
        listed = [dataclasses.asdict(result) for result in found]
        fields = {"device": device.device_kind, "interpreted": not is_gpu, "ok": ok}
        print(json.dumps({**fields, "results": listed}, indent=1))
    else:
        failed = sum(result.status == "FAILED" for result in found)
        print(f"{len(found)} checks, {failed} failed.")
    return 0 if ok else 1

"""`rtpjax plan MODEL --gpu h100 ...`: a table for people, `--json` for scripts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rtpjax.config import MIB, EngineSettings
from rtpjax.errors import CheckpointError, ConfigError

ReadConfig = Callable[[Path], Mapping[str, Any]]


def find_config(model: str, read_config: ReadConfig) -> Mapping[str, Any]:
    """A model's config.json: of a preset, a folder, a file, or a hub id; no weights are read.

    Raises:
        CheckpointError: It is none of these.
    """
    from rtpjax.plan import presets

    if model.lower() in presets.names():
        return presets.load(model)
    path = Path(model).expanduser()
    if (path / "config.json").is_file():
        return json.loads((path / "config.json").read_text())
    if path.exists():
        return read_config(path)
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return _from_hub(model)
    raise CheckpointError(
        f"{model}: no such folder, hub id or preset. Presets: {', '.join(presets.names())}."
    )


def _from_hub(model: str) -> Mapping[str, Any]:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return json.loads(Path(huggingface_hub.hf_hub_download(model, "config.json")).read_text())
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{model}: no such folder, and as a hub id its config.json cannot be fetched "
            f"({type(error).__name__}). Check the name, the network, and HF_TOKEN for gated models."
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rtpjax plan",
        description="Says what a model needs on GPUs that need not be there: memory, requests that "
        "fit, and the least times that bandwidth and arithmetic allow. Reads no weights.",
    )
    parser.add_argument("model", help="folder, .gguf file, hub id, or preset name")
    parser.add_argument("--gpu", required=True, help="a name, or a .toml file that describes one")
    parser.add_argument("--tp", type=int, default=1, help="GPUs that each layer is split over")
    parser.add_argument("--act-type", choices=("BF16", "FP16", "FP32"))
    parser.add_argument(
        "--kv-cache-dtype",
        choices=("auto", "int8", "fp8"),
        default="auto",
        help="format of cached keys and values (the server's INT8_KV_CACHE and FP8_KV_CACHE)",
    )
    parser.add_argument(
        "--quantization",
        choices=("int8", "int4", "fp8"),
        help="what plain weights are quantized to (the server's QUANTIZATION)",
    )
    parser.add_argument("--max-model-len", type=int, help="tokens of prompt and output together")
    parser.add_argument("--max-num-seqs", type=int, help="requests in a step")
    parser.add_argument("--max-num-batched-tokens", type=int, help="tokens in a step")
    parser.add_argument("--page-size", type=int, help="tokens a cache page holds")
    parser.add_argument("--reserved-mib", type=int, default=2048, help="for temporaries")
    parser.add_argument(
        "--memory-fraction", type=float, default=0.75, help="part of the memory that JAX may take"
    )
    parser.add_argument("--no-compile", action="store_true", help="do not ask the GPU compiler")
    parser.add_argument("--json", action="store_true", help="for scripts")
    return parser


def main(argv: Sequence[str] | None, read_config: ReadConfig) -> int:
    """Prints a plan; 0 if it fits, 1 if not, 2 for a question that has no answer."""
    args = _parser().parse_args(argv)
    from rtpjax.plan.plan import quiet_config

    with quiet_config():
        return _run(args, read_config)


def _run(args: argparse.Namespace, read_config: ReadConfig) -> int:
    import jax

    from rtpjax import gpus
    from rtpjax.models import ModelConfig
    from rtpjax.plan.plan import as_dict, make_plan
    from rtpjax.plan.report import table

    jax.config.update("jax_platforms", "cpu")
    settings = EngineSettings(
        act_type=args.act_type,
        kv_cache_dtype=None if args.kv_cache_dtype == "auto" else args.kv_cache_dtype,
        max_model_len=args.max_model_len,
        page_size=args.page_size,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        reserved_bytes=args.reserved_mib * MIB,
        tp_size=args.tp,
        quantization=args.quantization,
    )
    try:
        if args.tp < 1 or not 0 < args.memory_fraction <= 1:
            raise ConfigError("--tp must be at least 1, and --memory-fraction from 0 to 1.")
        plan = make_plan(
            ModelConfig.from_hf(find_config(args.model, read_config)),
            gpus.load(args.gpu),
            settings,
            memory_fraction=args.memory_fraction,
            compile_steps=not args.no_compile,
        )
    except (ConfigError, CheckpointError) as error:
        print(f"rtpjax plan: {error}", file=sys.stderr)
        return 2
    print(json.dumps(as_dict(plan), indent=2) if args.json else table(as_dict(plan)))
    return 0 if plan.problem is None else 1

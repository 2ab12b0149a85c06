"""From an opened checkpoint to an engine that is ready."""

from __future__ import annotations

import dataclasses

import jax
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from pallas_kernels.registry import current_target
from rtpjax import config, sharding
from rtpjax.checkpoint import Checkpoint, load_params, params_bytes
from rtpjax.distributed import runtime
from rtpjax.distributed.leader import Leader, LeadingRunner
from rtpjax.engine.engine import LLMEngine
from rtpjax.engine.runner import Runner
from rtpjax.models import build
from rtpjax.quantized_checkpoint import in_formats


def load_engine(
    checkpoint: Checkpoint,
    tokenizer: PreTrainedTokenizerFast,
    end_token_ids: tuple[int, ...],
    settings: config.EngineSettings,
    *,
    leader: Leader | None = None,
    show_progress: bool = True,
) -> LLMEngine:
    """Loads weights, settles the settings, allocates the cache and compiles.

    Args:
        checkpoint: From checkpoints_conv.readers.open_checkpoint.
        tokenizer: The model's.
        end_token_ids: Tokens that end an answer.
        settings: What the operator set.
        leader: Of the other processes of a mesh over many hosts.
        show_progress: Whether progress bars go to stderr.

    Raises:
        CheckpointError: The checkpoint does not fit the model.
        ConfigError: A setting cannot be met.
    """
    runner = load_runner(
        checkpoint, len(tokenizer), settings, leader=leader, show_progress=show_progress
    )
    return LLMEngine(runner, runner.config, tokenizer, end_token_ids)


def load_runner(
    checkpoint: Checkpoint,
    num_tokens: int,
    settings: config.EngineSettings,
    *,
    leader: Leader | None = None,
    show_progress: bool = True,
) -> Runner:
    """What every process of a mesh over many hosts does, in the same order.

    Args:
        num_tokens: Tokens that the tokenizer knows.
        checkpoint, settings, leader, show_progress: As in load_engine.
    """
    platform = jax.default_backend()
    if jax.process_count() > 1:
        runtime.check_mesh(settings.tp_size * settings.dp_size)
    precision = config.precision_of(settings, platform)
    model_config, specs, checkpoint = in_formats(
        checkpoint, settings.quantization, precision, platform
    )
    sharding.check_model_fits(model_config, settings.tp_size, settings.ep_size)
    mesh = sharding.make_mesh(
        settings.tp_size,
        dp_size=settings.dp_size,
        ep_size=settings.ep_size,
        model=model_config,
    )
    config.check_cache_dtype(settings, current_target())
    cache_specs = build(model_config, precision, abstract=True).cache_specs()
    is_cpu = platform == "cpu"

    def settle(free_bytes: int | None) -> config.EngineConfig:
        return config.resolve(
            settings, model_config, cache_specs, platform=platform, free_bytes=free_bytes
        )

    # Before the weights where it can be: a setting that cannot be met is said at once.
    resolved = settle(runtime.smallest_bytes(config.free_host_bytes())) if is_cpu else None
    with _bar("Loading weights", params_bytes(specs), "B", show_progress) as bar:
        params = load_params(checkpoint, specs, mesh, bar.update)
        jax.block_until_ready(params)
    resolved = resolved or settle(runtime.smallest_bytes(_free_gpu_bytes()))
    num_tokens = min(num_tokens, model_config.vocab_size)
    runtime.check_same(
        {
            **dataclasses.asdict(resolved),
            "checkpoint": checkpoint.config,
            "quantization": model_config.quantization,
            "tokens": num_tokens,
            "jax": jax.__version__,
        }
    )
    arguments = resolved, model_config, params, mesh, num_tokens
    runner = Runner(*arguments) if leader is None else LeadingRunner(leader, *arguments)
    with _bar("Compiling", runner.num_programs, "program", show_progress) as bar:
        runner.compile(bar.update)
    return runner


def _bar(title: str, total: int, unit: str, show: bool) -> tqdm:
    return tqdm(desc=title, total=total, unit=unit, unit_scale=unit == "B", disable=not show)


def _free_gpu_bytes() -> int:
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"]

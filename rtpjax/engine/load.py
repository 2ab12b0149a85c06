"""From an opened checkpoint to an engine that is ready."""

from __future__ import annotations

import jax
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from pallas_kernels.registry import current_target
from rtpjax import config, sharding
from rtpjax.checkpoint import Checkpoint, load_params, params_bytes
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
    show_progress: bool = True,
) -> LLMEngine:
    """Loads weights, settles the settings, allocates the cache and compiles.

    Args:
        checkpoint: From checkpoints_conv.readers.open_checkpoint.
        tokenizer: The model's.
        end_token_ids: Tokens that end an answer.
        settings: What the operator set.
        show_progress: Whether progress bars go to stderr.

    Raises:
        CheckpointError: The checkpoint does not fit the model.
        ConfigError: A setting cannot be met.
    """
    platform = jax.default_backend()
    precision = config.precision_of(settings, platform)
    # XLA's own products of quantized weights work on any mesh.
    num_devices = settings.tp_size * settings.dp_size
    model_config, specs, checkpoint = in_formats(
        checkpoint, settings.quantization, precision, platform, num_devices=num_devices
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
    resolved = settle(None) if is_cpu else None
    with _bar("Loading weights", params_bytes(specs), "B", show_progress) as bar:
        params = load_params(checkpoint, specs, mesh, bar.update)
        jax.block_until_ready(params)
    resolved = resolved or settle(_free_gpu_bytes())
    num_tokens = min(len(tokenizer), model_config.vocab_size)
    runner = Runner(resolved, model_config, params, mesh, num_tokens)
    with _bar("Compiling", runner.num_programs, "program", show_progress) as bar:
        runner.compile(bar.update)
    return LLMEngine(runner, resolved, tokenizer, end_token_ids)


def _bar(title: str, total: int, unit: str, show: bool) -> tqdm:
    return tqdm(desc=title, total=total, unit=unit, unit_scale=unit == "B", disable=not show)


def _free_gpu_bytes() -> int:
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"]

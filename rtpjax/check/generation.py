"""A short greedy generation on the device against the CPU, and the bandwidth of its decode step.

Without a GPU there is nothing to compare the CPU with but the kernels: the first layers of the
model generate with XLA's attention, as they would be served, and with interpreted kernels.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from transformers import PreTrainedTokenizerFast

from pallas_kernels import paged_attention
from pallas_kernels.registry import Implementation, using
from rtpjax import gpus
from rtpjax.check.results import Result
from rtpjax.checkpoint import Checkpoint, TensorInfo
from rtpjax.config import MIB, ActType, EngineSettings, precision_of
from rtpjax.dummy_checkpoint import AUTO, DUMMY, DummyCheckpoint, is_config_file
from rtpjax.engine.engine import LLMEngine
from rtpjax.engine.load import load_engine
from rtpjax.engine.request import RequestOutput, SamplingParams
from rtpjax.errors import EngineError
from rtpjax.gpus import Gpu
from rtpjax.models import ModelConfig
from rtpjax.plan import limits
from rtpjax.tokenizer import load_tokenizer

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time there was a small dragon who could not fly. Every morning it climbed the "
    "hill behind the village, spread its wings and jumped; and every morning it landed in the same "
    "pond. One day the frogs in the pond said to it:",
)
NUM_TOKENS = 24
NUM_INTERPRETED_TOKENS = 6
NUM_INTERPRETED_LAYERS = 2
_BANDWIDTH_ROWS = (1, 8, 64)
_BANDWIDTH_PROMPT = 512
_BANDWIDTH_STEPS = 64


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint that can be loaded as often as is needed.

    Attributes:
        path: Where it is.
        open: Opens it.
    """

    path: Path
    open: Callable[[Path], Checkpoint]

    def engine(self, settings: EngineSettings, num_layers: int | None = None) -> LLMEngine:
        """An engine that runs it, or its first layers."""
        checkpoint = self.open(self.path)
        if num_layers is not None:
            checkpoint = _first_layers(checkpoint, num_layers)
        return load_engine(checkpoint, self.tokenizer(), (), settings, show_progress=False)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return load_tokenizer(self.path)


@dataclasses.dataclass
class _FirstLayers:
    """A checkpoint that has no more than the first layers of another."""

    path: Path
    format: str
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    doubled: Mapping[str, tuple[str, ...]]
    files: tuple[Path, ...]
    whole: Checkpoint

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See Checkpoint."""
        return self.whole.read(name, index)


def _first_layers(checkpoint: Checkpoint, num_layers: int) -> Checkpoint:
    def is_kept(name: str) -> bool:
        parts = name.split(".")
        numbers = [int(b) for a, b in itertools.pairwise(parts) if a == "layers"]
        return all(number < num_layers for number in numbers)

    config = {**checkpoint.config, "num_hidden_layers": num_layers}
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = config["layer_types"][:num_layers]
    if isinstance(checkpoint, DummyCheckpoint):
        return DummyCheckpoint(config, checkpoint.path)
    tensors = {name: info for name, info in checkpoint.tensors.items() if is_kept(name)}
    c = checkpoint
    return _FirstLayers(c.path, c.format, config, tensors, c.doubled, c.files, c)


def _settings(act_type: ActType) -> EngineSettings:
    """Few buckets; prompts are longer than a step, so that they come in chunks."""
    return EngineSettings(
        act_type=act_type,
        max_model_len=128,
        page_size=16,
        max_num_seqs=2,
        max_num_batched_tokens=32,
        kv_cache_bytes=512 * MIB,
    )


def greedy_tokens(
    model: Model, act_type: ActType, num_tokens: int = NUM_TOKENS, num_layers: int | None = None
) -> list[list[int]]:
    """What the model says to PROMPTS on the device that jax runs on."""
    if act_type == "FP32":
        # A GPU rounds the inputs of float32 products to 10 bits unless it is told not to.
        jax.config.update("jax_default_matmul_precision", "highest")
    tokenizer = model.tokenizer()
    engine = model.engine(_settings(act_type), num_layers)
    prompts = [tokenizer.encode(prompt)[:100] for prompt in PROMPTS]
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    tokens = [_token_ids(outputs) for outputs in engine.generate(prompts, sampling)]
    jax.config.update("jax_default_matmul_precision", None)
    return tokens


def _token_ids(outputs: Sequence[RequestOutput]) -> list[int]:
    if outputs[-1].finish_reason == "error":
        raise EngineError(f"{outputs[-1].request_id}: {outputs[-1].error}")
    return [token_id for output in outputs for token_id in output.token_ids]


def agreement(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """Share of tokens up to the first that differs: what follows it has another context."""
    same = total = 0
    for a, b in zip(ours, theirs, strict=True):
        total += len(b)
        differ = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        same += differ[0] if differ else len(b)
    return same / total


def check_interpreted(model: Model) -> Result:
    """The kernels in interpret mode in a model, against XLA's attention."""
    kinds = set()

    def interpreted(*arrays: jax.Array, **options: Any) -> jax.Array:
        kinds.add("decode" if options["decode"] else "prefill")
        return paged_attention.pallas(*arrays, **options, interpret=True)

    kernels = Implementation("pallas, interpreted", interpreted, ("cpu",))
    run = partial(greedy_tokens, model, "FP32", NUM_INTERPRETED_TOKENS, NUM_INTERPRETED_LAYERS)
    want = run()
    with using({paged_attention.OP.name: kernels}):
        got = run()
    assert kinds == {"decode", "prefill"}  # it was the kernels that computed this
    case = f"first {NUM_INTERPRETED_LAYERS} layers, float32"
    detail = "interpreted kernels against XLA's attention, both on the CPU"
    return _compared(case, got, want, detail)


def check_generation(model: Model, act_type: ActType) -> Result:
    """The whole model on the GPU, against a process of its own on the CPU."""
    got = greedy_tokens(model, act_type)
    gc.collect()  # what the engine held
    command = [sys.executable, "-m", "rtpjax.cli", "check", "--model", str(model.path)]
    command += ["--load-format", DUMMY if is_config_file(model.path) else AUTO]
    done = subprocess.run(
        [*command, "--act-type", act_type, "--print-tokens"],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return Result("generation", act_type, "FAILED", f"on the CPU: {done.stderr[-300:]}")
    want = json.loads(done.stdout.splitlines()[-1])
    if act_type == "FP32":
        return _compared("float32", got, want, "GPU against CPU")
    detail = f"GPU against CPU: {agreement(got, want):.0%} of tokens up to the first that differs"
    return Result("generation", act_type, "measured", detail)


def _compared(
    case: str, got: Sequence[Sequence[int]], want: Sequence[Sequence[int]], detail: str
) -> Result:
    """Tokens in float32 have to be the same."""
    share, count = agreement(got, want), sum(map(len, want))
    detail = f"{detail}: {round(share * count)} of {count} tokens the same"
    return Result("generation", case, "ok" if share == 1 else "FAILED", detail)


def find_gpu(named: str | None) -> Gpu | None:
    """The data of the GPU that jax runs on; None if nobody has described it."""
    if named is not None:
        return gpus.load(named)
    return gpus.of_device(jax.devices()[0].device_kind)


def measure_bandwidth(model: Model, gpu: Gpu | None) -> list[Result]:
    """Time of decode steps of the engine, host included, beside the plan's limit."""
    settings = EngineSettings(max_model_len=1024, max_num_seqs=max(_BANDWIDTH_ROWS))
    engine = model.engine(settings)
    config = ModelConfig.from_hf(model.open(model.path).config)
    needs = limits.needs(config, precision_of(settings, "gpu"), 1)
    results = []
    for rows in _BANDWIDTH_ROWS:
        step_s = _decode_step_s(engine, rows, config.vocab_size)
        context = _BANDWIDTH_PROMPT + _BANDWIDTH_STEPS // 2
        moved = needs.decode_bytes(rows, context) / step_s
        detail = f"{1e3 * step_s:.2f} ms a step, {moved / 1e9:.0f} GB/s"
        if gpu is None:
            detail += "; no limit: this GPU is not described, --gpu names or describes it"
        else:
            least_s = limits.least_tpot_s(needs, gpu, rows, context)
            detail += f"; limit {1e3 * least_s:.2f} ms, {least_s / step_s:.0%} of it reached"
        results.append(
            Result("decode step", f"{rows} rows of {context} tokens", "measured", detail)
        )
    return results


def _decode_step_s(engine: LLMEngine, rows: int, vocab_size: int) -> float:
    """Seconds of a step: long answers less short ones, so that prompts cancel out."""
    rng = np.random.default_rng(rows)
    prompts = rng.integers(0, vocab_size // 2, (rows, _BANDWIDTH_PROMPT)).tolist()

    def seconds(max_tokens: int) -> float:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        started = time.perf_counter()
        engine.generate(prompts, sampling)
        return time.perf_counter() - started

    seconds(1)  # from here on the prompts' pages are shared with what ran before
    return (seconds(2 + _BANDWIDTH_STEPS) - seconds(2)) / _BANDWIDTH_STEPS

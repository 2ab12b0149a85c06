"""An engine whose device answers at once. `null_engine.py` serves it, under any checkout."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from rtpjax import config, sharding
from rtpjax.engine.engine import LLMEngine
from rtpjax.engine.runner import Runner
from rtpjax.models import ModelConfig, abstract_state, build
from rtpjax.tokenizer import load_tokenizer

_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "intermediate_size": 64,
    "max_position_embeddings": 2048,
    "num_hidden_layers": 1,
}
_NUM_ANSWERS = 64
_RESULT_INTS = 64  # of each row, more than any step returns
_FIRST_TOKEN, _LAST_TOKEN = 300, 20_000  # words, not single bytes


class _Answer:
    """Stands for an array on the device that is ready."""

    def __init__(self, values: np.ndarray):
        self._values = values

    def addressable_data(self, _: int) -> _Answer:
        return self

    def copy_to_host_async(self) -> None:
        pass

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        return self._values


class NullRunner(Runner):
    """A runner without a device: each row of each step has its random token at once."""

    def __init__(self, resolved: config.EngineConfig, model: ModelConfig, num_tokens: int):
        rng = np.random.default_rng(0)
        num_rows = max(resolved.max_num_seqs, 2)
        last = min(num_tokens, _LAST_TOKEN)
        first = min(_FIRST_TOKEN, last - 1)
        shape = _NUM_ANSWERS, num_rows, _RESULT_INTS
        tokens = rng.integers(first, last, shape).astype(np.int32)
        self._answers = [_Answer(each) for each in tokens]
        self._number = 0
        weights: Any = dict.fromkeys(abstract_state(model, resolved.precision))  # nobody reads them
        super().__init__(resolved, model, weights, sharding.make_mesh(1, model=model), num_tokens)

    def execute(self, call: Any) -> Any:
        """Answers what is chosen, and does nothing else."""
        self._number = (self._number + 1) % _NUM_ANSWERS
        return self._answers[self._number]


def make_engine(tokenizer: Any, num_rows: int) -> LLMEngine:
    """An engine for num_rows requests at once."""
    jax.config.update("jax_platforms", "cpu")
    model = ModelConfig.from_hf(_MODEL | {"vocab_size": len(tokenizer)})
    settings = config.EngineSettings(
        act_type="FP32",
        max_num_seqs=num_rows,
        max_num_batched_tokens=8 * num_rows,
        kv_cache_bytes=512 * config.MIB,
    )
    precision = config.precision_of(settings, "cpu")
    specs = build(model, precision, abstract=True).cache_specs()
    resolved = config.resolve(settings, model, specs, platform="cpu")
    return LLMEngine(NullRunner(resolved, model, len(tokenizer)), resolved, tokenizer, ())


def open_null(tokenizer_path: str, num_rows: int) -> Any:
    """For an engine's process; its description is the tokenizer."""
    from rtpjax.engine.process_main import Opened

    tokenizer = load_tokenizer(tokenizer_path)
    return Opened(tokenizer, lambda _: make_engine(tokenizer, num_rows))

"""A tiny Llama with random float32 weights, its tokenizer, and engines that run it.

Programs are compiled once, for a runner; engines with pools and limits of their own are made on top
of it.
"""

from __future__ import annotations

import dataclasses
import random
import re
from functools import cache

import jax
import jax.numpy as jnp
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rtpjax import sharding
from rtpjax.config import EngineConfig
from rtpjax.engine.cache_groups import CacheGroup
from rtpjax.engine.engine import LLMEngine
from rtpjax.engine.request import GenerationRequest, RequestOutput, SamplingParams
from rtpjax.engine.runner import Runner
from rtpjax.engine.sequence import Sequence
from rtpjax.models import ModelConfig, Precision, abstract_state
from tests.golden import cases

NUM_TOKENS = 300  # of the tokenizer; the model's logits are padded
END = 2
HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
    "eos_token_id": END,
    "pad_token_id": 0,
}
MODEL = ModelConfig.from_hf(HF_CONFIG)
FP32 = Precision.of("FP32", "cpu")
CONFIG = EngineConfig(
    precision=FP32,
    max_model_len=64,
    page_size=4,
    cache_groups=(CacheGroup(None, 1000),),
    max_num_seqs=4,
    max_num_batched_tokens=32,
    max_num_waiting=100,
    use_prefix_cache=True,
    tp_size=1,
)
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Token i is the text " i"; 0, 1 and 2 are special."""
    special = ["<pad>", "<s>", "</s>"]
    words = special + [f" {i}" for i in range(len(special), NUM_TOKENS)]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(word, special=True) for word in special])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def text_of(token_ids) -> str:
    return "".join(f" {i}" for i in token_ids if i > 2)


def make_runner(
    config: EngineConfig = CONFIG, model: ModelConfig = MODEL, num_tokens: int = NUM_TOKENS
) -> Runner:
    """A runner with compiled programs."""
    mesh = sharding.make_mesh(
        config.tp_size, dp_size=config.dp_size, ep_size=config.ep_size, model=model
    )
    params = {
        name: jax.device_put(
            jnp.asarray(cases.weight(name, spec.shape)) + spec.offset,
            sharding.named_sharding(mesh, spec.axes, spec.shape),
        )
        for name, spec in abstract_state(model, FP32).items()
    }
    runner = Runner(config, model, params, mesh, num_tokens)
    runner.compile()
    return runner


@cache
def runner() -> Runner:
    """The one of CONFIG, compiled once for all tests of a process; reset it before use."""
    return make_runner()


class CheckedEngine(LLMEngine):
    """An engine whose books are checked after each step."""

    def step(self) -> list[RequestOutput]:
        outputs = super().step()
        self.check_integrity()
        return outputs


def copied_caches(runner: Runner) -> set[tuple[int, ...]]:
    """Shapes of cache arrays, as a device has them, that a compiled step copies."""
    shapes = {x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(runner._caches)}
    texts = [program.as_text() for program in runner._forward.values()]
    copied = [c for text in texts for c in re.findall(r"= \w+\[([\d,]+)\]\S* copy\(", text)]
    assert copied  # of other things: or this finds nothing
    return shapes & {tuple(map(int, shape.split(","))) for shape in copied}


def make_engine(runner: Runner, **settings) -> CheckedEngine:
    """An engine on a compiled runner; settings that are not in the programs can be set anew."""
    free = {
        "num_pages",
        "max_num_batched_tokens",
        "max_num_seqs",
        "use_prefix_cache",
        "drafts",
        "max_num_waiting",
    }
    assert settings.keys() <= free
    config = changed(runner.config, **settings)
    return CheckedEngine(runner, config, tokenizer(), [END])


def changed(config: EngineConfig, *, num_pages: int | None = None, **settings) -> EngineConfig:
    """The config with other settings; every cache group has so many pages."""
    if num_pages is not None:
        settings["cache_groups"] = tuple(
            dataclasses.replace(group, num_pages=num_pages) for group in config.cache_groups
        )
    return dataclasses.replace(config, **settings)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    """Random tokens, none special."""
    return tuple(random.Random(f"{length} {seed}").choices(range(3, NUM_TOKENS), k=length))


def sequence(prompt_token_ids, sampling: SamplingParams) -> Sequence:
    request = GenerationRequest("r", tuple(prompt_token_ids), sampling)
    return Sequence(request, order=(0, 0), max_tokens=20)


def params(**options) -> SamplingParams:
    """Greedy, 12 tokens, through the end token, unless options say otherwise."""
    return dataclasses.replace(GREEDY, **options)


def tokens_of(outputs: list[RequestOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def generate(engine: LLMEngine, prompts, sampling=GREEDY) -> list[list[int]]:
    """The tokens of each prompt, which each must end in exactly one terminal output."""
    results = engine.generate(prompts, sampling)
    for outputs in results:
        assert_ends_once(outputs)
    return [tokens_of(outputs) for outputs in results]


def assert_ends_once(outputs: list[RequestOutput]) -> None:
    assert outputs[-1].finish_reason is not None
    assert all(output.finish_reason is None for output in outputs[:-1])
    assert outputs[-1].num_output_tokens == len(tokens_of(outputs))


def add(engine: LLMEngine, request_id: str, prompt_token_ids, **options) -> None:
    """Queues a request."""
    request = GenerationRequest(request_id, tuple(prompt_token_ids), params(**options))
    engine.check(request)
    engine.add(request)


def run(engine: LLMEngine) -> dict[str, list[RequestOutput]]:
    """Steps until all requests have ended; outputs by request."""
    outputs: dict[str, list[RequestOutput]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs

"""Sizes and limits against figures made by hand and by the loader's own arithmetic."""

from __future__ import annotations

import math

import pytest

from rtpjax import gpus
from rtpjax.checkpoint import params_bytes
from rtpjax.errors import ConfigError
from rtpjax.models import ModelConfig, Precision, abstract_state
from rtpjax.plan import limits, presets

BF16 = Precision.of("BF16", "gpu")
# As their makers publish them, in parameters.
PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "qwen2.5-0.5b": 494_032_768,
    "llama-3.1-8b": 8_030_261_248,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "llama-3.1-70b": 70_553_706_496,
    "qwen2.5-72b": 72_706_203_648,
    "mixtral-8x7b": 46_702_792_704,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "glm-4.5-air": 106_852_251_264,  # without the layer that predicts further tokens
    "gemma-3-27b": 27_009_346_304,  # without what sees images
}


def config(name: str) -> ModelConfig:
    return ModelConfig.from_hf(presets.load(name))


@pytest.mark.parametrize("name", presets.names())
def test_presets_have_the_published_number_of_parameters(name):
    specs = abstract_state(config(name), BF16)
    assert sum(math.prod(spec.shape) for spec in specs.values()) == PARAMETERS[name]
    assert limits.needs(config(name), BF16, 1).weights_bytes == params_bytes(specs)


def test_llama_by_hand():
    whole = limits.needs(config("llama-3.1-8b"), BF16, 1)
    embedding = 128256 * 4096 * 2
    assert whole.read_bytes == whole.weights_bytes - embedding
    assert whole.token_bytes == 32 * 2 * 8 * 128 * 2
    rows, context = 8, 1000
    assert whole.decode_bytes(rows, context) == (
        whole.read_bytes + rows * 4096 * 2 + rows * (context + 1) * 131072
    )
    layer = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336
    assert whole.layer_params == 32 * layer
    per_token = 2 * (32 * layer + 128256 * 4096) + 32 * context * 4 * 32 * 128
    assert whole.decode_flops(rows, context) == rows * per_token


def test_a_tied_embedding_is_read_as_a_whole():
    whole = limits.needs(config("smollm2-135m"), BF16, 1)
    assert whole.read_bytes == whole.weights_bytes
    assert whole.row_bytes == 0
    assert whole.head_params == 49152 * 576


def test_four_gpus_share():
    one, four = (limits.needs(config("qwen3-32b"), BF16, n) for n in (1, 4))
    assert four.token_bytes * 4 == one.token_bytes
    assert four.layer_params * 4 == one.layer_params
    # The embedding is looked up only, and whole on each of them.
    one_split, four_split = (n.weights_bytes - 151936 * 5120 * 2 for n in (one, four))
    assert one_split / 4 < four_split < one_split / 4 * 1.001  # norms


def test_a_window_bounds_what_is_read_and_computed():
    hf = presets.load("qwen2.5-0.5b") | {
        "use_sliding_window": True, "sliding_window": 100, "max_window_layers": 0,
    }  # fmt: skip
    whole = limits.needs(ModelConfig.from_hf(hf), BF16, 1)
    assert whole.live_bytes(5000) == whole.live_bytes(100) == 100 * whole.token_bytes
    # 150 tokens: 100 * 101 / 2 pairs until the window is full, then 50 of 100.
    pairs = 24 * (100 * 101 // 2 + 50 * 100)
    products = 2 * (150 * whole.layer_params + whole.head_params)
    assert whole.prefill_flops(150) == products + pairs * 4 * 14 * 64


def test_limits_are_of_the_scarcer_resource():
    whole, h100 = limits.needs(config("llama-3.1-8b"), BF16, 1), gpus.load("h100")
    assert limits.least_tpot_s(whole, h100, 1, 1000) == pytest.approx(
        whole.decode_bytes(1, 1000) / 3.35232e12
    )
    assert limits.least_ttft_s(whole, h100, 8192, 8192) == pytest.approx(
        whole.prefill_flops(8192) / 989.4e12
    )


def test_a_split_through_a_head_names_the_choices():
    with pytest.raises(ConfigError, match=r"one of \[1, 2, 4, 8, 16, 32, 64, 128\]"):
        limits.needs(config("qwen3-32b"), BF16, 3)

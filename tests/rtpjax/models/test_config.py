"""Reading config.json: both styles of transformers, families' own values, and refusals."""

from __future__ import annotations

from typing import Any

import pytest

from rtpjax.errors import CheckpointError
from rtpjax.models import ModelConfig
from tests.golden import cases


def read(architecture: str = "LlamaForCausalLM", **options: Any) -> ModelConfig:
    base = cases.CASES["llama"].config | {"architectures": [architecture]}
    kept = {k: v for k, v in base.items() if k not in ("model_type", "rope_theta")}
    return ModelConfig.from_hf(kept | options)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("scaling", [None, LLAMA3, {"type": "linear", "factor": 2.0}])
def test_rope_reads_the_same_in_both_styles(scaling: dict[str, Any] | None):
    old = read(rope_theta=500000.0, rope_scaling=scaling)
    new = read(rope_parameters={**(scaling or {"rope_type": "default"}), "rope_theta": 500000.0})
    assert old == new
    assert old.layer_ropes[0].rope_theta == 500000.0
    assert old.layer_ropes[0].rope_type == (
        "default" if scaling is None else new.layer_ropes[0].rope_type
    )


def test_rope_scaling_values_are_read():
    rope = read(rope_theta=500000.0, rope_scaling=LLAMA3).layer_ropes[0]
    assert (rope.rope_type, rope.factor, rope.original_max_position_embeddings) == (
        "llama3",
        32.0,
        8192,
    )


@pytest.mark.parametrize(
    ("value", "expected"), [(2, (2,)), ([128001, 128009], (128001, 128009)), (None, ())]
)
def test_eos_is_one_id_or_several_or_none(value: Any, expected: tuple[int, ...]):
    assert read(eos_token_id=value).eos_token_ids == expected


def test_family_defaults():
    llama = read(num_key_value_heads=None, head_dim=None)
    assert (llama.num_key_value_heads, llama.head_dim) == (4, 8)
    assert llama.layer_windows == (None, None)
    config = dict(cases.CASES["qwen3"].config)
    assert ModelConfig.from_hf(config | {"head_dim": None}).head_dim == 128
    assert read("MistralForCausalLM").layer_windows == (4096, 4096)
    assert read("MistralForCausalLM", sliding_window=None).sliding_window is None
    qwen2 = read("Qwen2ForCausalLM")
    assert (qwen2.attention_bias, qwen2.o_proj_bias, qwen2.sliding_window) == (True, False, None)


def test_layers_with_a_window():
    options = {"sliding_window": 5, "num_hidden_layers": 4}
    switched_off = read("Qwen2ForCausalLM", use_sliding_window=False, **options)
    assert switched_off.layer_windows == (None,) * 4
    upper = read("Qwen2ForCausalLM", use_sliding_window=True, max_window_layers=3, **options)
    assert upper.layer_windows == (None, None, None, 5)
    kinds = ["sliding_attention", "full_attention"] * 2
    listed = read("Qwen3ForCausalLM", use_sliding_window=True, layer_types=kinds, **options)
    assert listed.layer_windows == (5, None, 5, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "LlamaForCausalLM, .*MistralForCausalLM"),
        ({"architectures": None}, "must name one architecture"),
        ({"hidden_act": "relu2"}, "hidden_act 'relu2'"),
        ({"hidden_size": "32"}, "hidden_size must be a positive integer, found '32'"),
        ({"intermediate_size": None}, "intermediate_size"),
        ({"num_attention_heads": 3}, "multiple of num_key_value_heads"),
        ({"quantization_config": {"quant_method": "hqq"}}, "'hqq'"),
        ({"sliding_window": 4096}, "attends to the whole context"),
        ({"architectures": ["MistralForCausalLM"], "attention_bias": True}, "attention_bias"),
        ({"layer_types": ["full_attention"]}, "each of the 2 layers"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "no window is set"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, r"needs \['factor'\]"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "wave": 1}}, r"\['wave'\]"),
        ({"rope_scaling": LLAMA3 | {"attention_factor": 2.0}}, r"\['attention_factor'\]"),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": 1.0}}}, "full_attention"),
        ({"head_dim": 15}, "15 features"),
    ],
)
def test_refuses_by_name(options: dict[str, Any], message: str):
    with pytest.raises(CheckpointError, match=message):
        read(**options)

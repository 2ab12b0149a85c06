"""Tiny models of every variant that is served: the config.json of each, its weights and its prompt.

Weights and prompts follow from names by a seed, so a stored golden array is only the logits.
"""

from __future__ import annotations

import dataclasses
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

FOLDER = pathlib.Path(__file__).parent
PROMPT_LEN = 24


@dataclasses.dataclass(frozen=True)
class Case:
    """One tiny model.

    Attributes:
        config: Its config.json.
        by_token: Whether the reference computes the prompt token by token through its cache, not in
            one pass. Only for rope types whose angles depend on how long the sequence is.
    """

    config: dict[str, Any]
    by_token: bool = False


def _config(architecture: str, **options: Any) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 2,
        "pad_token_id": 0,
    } | options


def _llama(**options: Any) -> dict[str, Any]:
    return _config("LlamaForCausalLM", **options)


# Options such that within 8 frequencies some are kept, some are blended and some are scaled.
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
_YARN_OPTIONS = {
    "original_max_position_embeddings": 16,
    "truncate": False,
    "mscale": 1.0,
    "mscale_all_dim": 0.5,
    "beta_fast": 3.0,
    "beta_slow": 0.2,
}

CASES: dict[str, Case] = {
    "llama": Case(_llama(rope_theta=1000.0)),
    "llama_mha_tied": Case(
        _llama(num_key_value_heads=4, head_dim=8, tie_word_embeddings=True, rope_theta=10000.0)
    ),
    "llama_biases": Case(_llama(attention_bias=True, mlp_bias=True)),
    "llama_gelu": Case(_llama(hidden_act="gelu")),
    "llama_gelu_tanh": Case(_llama(hidden_act="gelu_pytorch_tanh")),
    "llama_rope_linear": Case(_llama(rope_scaling={"type": "linear", "factor": 4.0})),
    "llama_rope_dynamic": Case(_llama(rope_scaling={"type": "dynamic", "factor": 2.0})),
    "llama_rope_dynamic_long": Case(
        _llama(
            max_position_embeddings=8,
            rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        ),
        by_token=True,
    ),
    "llama_rope_llama3": Case(_llama(rope_theta=500.0, rope_scaling=_LLAMA3)),
    "llama_rope_yarn": Case(_llama(rope_parameters=_YARN | {"rope_theta": 100.0})),
    "llama_rope_yarn_options": Case(_llama(rope_theta=100.0, rope_scaling=_YARN | _YARN_OPTIONS)),
    "llama_rope_yarn_factor": Case(_llama(rope_scaling=_YARN | {"attention_factor": 0.7})),
    "mistral": Case(_config("MistralForCausalLM", sliding_window=6)),
    "mistral_no_window": Case(_config("MistralForCausalLM", sliding_window=None)),
    "qwen2": Case(_config("Qwen2ForCausalLM", head_dim=None, tie_word_embeddings=True)),
    "qwen2_windows": Case(
        _config(
            "Qwen2ForCausalLM",
            head_dim=None,
            num_hidden_layers=3,
            use_sliding_window=True,
            sliding_window=5,
            max_window_layers=1,
        )
    ),
    "qwen3": Case(_config("Qwen3ForCausalLM")),
    "qwen3_windows": Case(
        _config(
            "Qwen3ForCausalLM",
            attention_bias=True,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=7,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
}


CASES |= {
    "qwen3_moe": Case(
        _config(
            "Qwen3MoeForCausalLM",
            model_type="qwen3_moe",
            num_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            norm_topk_prob=True,
        )
    ),
    "qwen3_moe_mixed": Case(
        _config(
            "Qwen3MoeForCausalLM",
            model_type="qwen3_moe",
            num_hidden_layers=4,
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=24,
            decoder_sparse_step=2,
            mlp_only_layers=[3],
        )
    ),
}


# Windows that are shorter than the prompt, so that both kinds of layers differ.
_GEMMA = {"sliding_window": 6, "query_pre_attn_scalar": 24, "num_hidden_layers": 4}
_LAYERS = {"num_hidden_layers": 4}

CASES |= {
    "gemma2": Case(_config("Gemma2ForCausalLM", **_GEMMA)),
    "gemma2_no_caps": Case(
        _config(
            "Gemma2ForCausalLM",
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            layer_types=["full_attention", "sliding_attention"],
            sliding_window=5,
        )
    ),
    "gemma3": Case(
        _config("Gemma3ForCausalLM", model_type="gemma3_text", sliding_window_pattern=3, **_GEMMA)
    ),
    "gemma3_scaled": Case(
        _config(
            "Gemma3ForCausalLM",
            model_type="gemma3_text",
            sliding_window_pattern=2,
            rope_theta=1000.0,
            rope_local_base_freq=100.0,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
            **_GEMMA,
        )
    ),
    "smollm3": Case(_config("SmolLM3ForCausalLM", **_LAYERS)),
    "smollm3_windows": Case(
        _config(
            "SmolLM3ForCausalLM",
            no_rope_layers=[1, 0, 1, 0],
            use_sliding_window=True,
            sliding_window=5,
            **_LAYERS,
        )
    ),
    "olmo2": Case(_config("Olmo2ForCausalLM", head_dim=8)),
    "olmo3": Case(
        _config(
            "Olmo3ForCausalLM",
            head_dim=8,
            sliding_window=6,
            rope_theta=1000.0,
            rope_scaling=_YARN,
            **_LAYERS,
        )
    ),
    "granite": Case(
        _config(
            "GraniteForCausalLM",
            head_dim=8,
            embedding_multiplier=3.0,
            attention_multiplier=0.2,
            residual_multiplier=0.6,
            logits_scaling=2.5,
        )
    ),
    "glm": Case(_config("GlmForCausalLM")),
    "glm4": Case(_config("Glm4ForCausalLM", partial_rotary_factor=0.5)),
    "phi3": Case(_config("Phi3ForCausalLM", head_dim=8, sliding_window=7)),
}


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """The float32 weight of a tensor; norm weights are about 1, so that none can be left out."""
    values = _rng(name).standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        return 0.3 * values + (0.0 if name.endswith("bias") else 1.0)
    return values * np.float32(1.5 * shape[-1] ** -0.5)


def prompt(case_name: str) -> np.ndarray:
    """int32 `[PROMPT_LEN]` token ids."""
    case = CASES[case_name]
    return _rng(case_name).integers(0, case.config["vocab_size"], PROMPT_LEN, dtype=np.int32)


def golden_logits(case_name: str) -> np.ndarray:
    """What transformers computed for the prompt: float32 `[PROMPT_LEN, V]`."""
    with np.load(FOLDER / f"{case_name}.npz") as stored:
        assert (stored["token_ids"] == prompt(case_name)).all(), "run tests/golden/make_golden.py"
        return stored["logits"]


_EXPERTS = {"num_hidden_layers": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_DEEPSEEK_ROUTER = {
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
}

CASES |= {
    "mixtral": Case(
        _config("MixtralForCausalLM", num_local_experts=6, num_experts_per_tok=2, sliding_window=5)
    ),
    "qwen2_moe": Case(
        _config(
            "Qwen2MoeForCausalLM",
            model_type="qwen2_moe",
            num_experts=6,
            shared_expert_intermediate_size=40,
            **_EXPERTS,
        )
    ),
    "qwen2_moe_mixed": Case(
        _config(
            "Qwen2MoeForCausalLM",
            model_type="qwen2_moe",
            num_experts=6,
            shared_expert_intermediate_size=40,
            norm_topk_prob=True,
            mlp_only_layers=[1],
            use_sliding_window=True,
            sliding_window=5,
            max_window_layers=2,
            **_EXPERTS,
        )
    ),
    "glm4_moe": Case(
        _config(
            "Glm4MoeForCausalLM",
            model_type="glm4_moe",
            attention_bias=True,
            use_qk_norm=True,
            n_shared_experts=2,
            **_DEEPSEEK_ROUTER,
            **_EXPERTS,
        )
    ),
    "glm4_moe_plain": Case(
        _config(
            "Glm4MoeForCausalLM",
            model_type="glm4_moe",
            n_routed_experts=6,
            norm_topk_prob=False,
            **_EXPERTS,
        )
    ),
    "minimax_m2": Case(
        _config(
            "MiniMaxM2ForCausalLM",
            model_type="minimax_m2",
            num_local_experts=6,
            num_experts_per_tok=2,
            rotary_dim=8,
        )
    ),
    "hy_v3": Case(
        _config(
            "HYV3ForCausalLM", model_type="hy_v3", num_experts=6, num_shared_experts=2, **_EXPERTS
        )
    ),
    "granite_moe": Case(
        _config(
            "GraniteMoeForCausalLM",
            model_type="granitemoe",
            num_local_experts=6,
            num_experts_per_tok=2,
            embedding_multiplier=3.0,
            attention_multiplier=0.2,
            residual_multiplier=0.4,
            logits_scaling=2.0,
        )
    ),
    "olmoe": Case(_config("OlmoeForCausalLM", head_dim=8, num_experts=6, num_experts_per_tok=2)),
    "gpt_oss": Case(
        _config(
            "GptOssForCausalLM",
            model_type="gpt_oss",
            num_hidden_layers=3,
            num_local_experts=6,
            num_experts_per_tok=2,
            sliding_window=6,
            swiglu_limit=0.5,
            rope_scaling={
                "rope_type": "yarn",
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 16,
            },
        )
    ),
}

"""Mixtral (8x7B, 8x22B): Llama whose MLPs are mixtures of experts.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/mixtral
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.decoder import Decoder


class MixtralForCausalLM(Decoder):
    """A Mixtral decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 4096 * 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": True,
        "norm_topk_prob": True,
    }
    stored_names: ClassVar[Mapping[str, str]] = {
        r"\.block_sparse_moe\.": ".mlp.",
        r"\.experts\.(\d+)\.w1\.": r".experts.\1.gate_proj.",
        r"\.experts\.(\d+)\.w3\.": r".experts.\1.up_proj.",
        r"\.experts\.(\d+)\.w2\.": r".experts.\1.down_proj.",
    }


ARCHITECTURES = {"MixtralForCausalLM": MixtralForCausalLM}

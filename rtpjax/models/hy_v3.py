"""Hy3 (Hunyuan 3): q and k normalized per head, DeepSeek V3's router without groups.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/hy_v3
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.decoder import Decoder
from rtpjax.models.moe_config import SIGMOID_ROUTER


class HYV3ForCausalLM(Decoder):
    """A Hy3 decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 11_158_840.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "intermediate_size": 13312,
        "moe_intermediate_size": 1536,
        "num_experts_per_tok": 8,
        "num_experts": 192,
        "num_shared_experts": 1,
        "router_scaling_factor": 2.826,
        "first_k_dense_replace": 1,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {"norm_topk_prob": True, **SIGMOID_ROUTER}
    stored_names: ClassVar[Mapping[str, str]] = {
        r"\.mlp\.router\.gate\.": ".mlp.gate.",
        r"\.mlp\.(?:expert_bias|e_score_correction_bias)": ".mlp.gate.e_score_correction_bias",
        r"\.mlp\.shared_mlp\.": ".mlp.shared_experts.",
    }
    has_mtp_layers = True

    @classmethod
    def options(cls, hf: Mapping[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        return {"qk_norm": "head"}


ARCHITECTURES = {"HYV3ForCausalLM": HYV3ForCausalLM}

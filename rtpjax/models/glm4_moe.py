"""GLM-4.5, 4.6 and 4.7: half of each head turned, DeepSeek V3's router, a shared expert.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/glm4_moe
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.decoder import Decoder
from rtpjax.models.moe_config import SIGMOID_ROUTER


class Glm4MoeForCausalLM(Decoder):
    """A GLM-4.5 decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "partial_rotary_factor": 0.5,
        "use_qk_norm": False,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": True,
        "first_k_dense_replace": 1,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {
        "mlp_bias": False,
        "o_proj_bias": False,
        **SIGMOID_ROUTER,
    }
    has_mtp_layers = True

    @classmethod
    def options(cls, hf: Mapping[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        return {"qk_norm": "head" if hf["use_qk_norm"] else None}


ARCHITECTURES = {"Glm4MoeForCausalLM": Glm4MoeForCausalLM}

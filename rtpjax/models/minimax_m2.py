"""MiniMax M2: partial rope, q and k normalized whole, experts chosen by sigmoid and bias.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/minimax_m2
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.decoder import Decoder
from rtpjax.models.mixtral import MixtralForCausalLM


class MiniMaxM2ForCausalLM(Decoder):
    """A MiniMax M2 decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 196608,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {
        "attention_bias": False,
        "mlp_bias": False,
        "use_qk_norm": True,
        "norm_topk_prob": True,
        "router_score": "sigmoid",
        "router_has_bias": True,
    }
    stored_names: ClassVar[Mapping[str, str]] = {
        **MixtralForCausalLM.stored_names,
        r"\.mlp\.e_score_correction_bias": ".mlp.gate.e_score_correction_bias",
    }

    @classmethod
    def completed(cls, hf: dict[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        if "rotary_dim" in hf:
            hf.setdefault("partial_rotary_factor", hf["rotary_dim"] / hf["head_dim"])
        return hf

    @classmethod
    def options(cls, hf: Mapping[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        return {"qk_norm": "projection"}


ARCHITECTURES = {"MiniMaxM2ForCausalLM": MiniMaxM2ForCausalLM}

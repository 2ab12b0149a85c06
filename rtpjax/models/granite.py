"""Granite 3 (dense): Llama with multipliers of embeddings, scores, blocks and logits.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/granite
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.decoder import Decoder


class GraniteForCausalLM(Decoder):
    """A Granite decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    }

    @classmethod
    def options(cls, hf: Mapping[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        return {
            "embedding_scale": float(hf["embedding_multiplier"]),
            "attention_scale": float(hf["attention_multiplier"]),
            "residual_scale": float(hf["residual_multiplier"]),
            "logits_scale": 1.0 / hf["logits_scaling"],
        }


class GraniteMoeForCausalLM(GraniteForCausalLM):
    """A Granite decoder with experts (Granite 3 1B-A400M, 3B-A800M)."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        **GraniteForCausalLM.hf_defaults,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {"norm_topk_prob": True}
    stored_names: ClassVar[Mapping[str, str]] = {
        r"\.block_sparse_moe\.": ".mlp.",
        r"\.mlp\.input_linear\.weight": ".mlp.experts.gate_up_proj",
        r"\.mlp\.output_linear\.weight": ".mlp.experts.down_proj",
        r"\.mlp\.router\.(?:layer\.)?": ".mlp.gate.",
    }


ARCHITECTURES = {
    "GraniteForCausalLM": GraniteForCausalLM,
    "GraniteMoeForCausalLM": GraniteMoeForCausalLM,
}

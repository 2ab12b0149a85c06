"""OLMoE: q and k normalized whole, all layers with experts.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/olmoe
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.decoder import Decoder


class OlmoeForCausalLM(Decoder):
    """An OLMoE decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "num_experts_per_tok": 8,
        "num_experts": 64,
        "norm_topk_prob": False,
    }
    # clip_qkv was for training; no published checkpoint has it.
    hf_fixed: ClassVar[Mapping[str, Any]] = {"mlp_bias": False, "clip_qkv": None}

    @classmethod
    def options(cls, hf: Mapping[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        return {"qk_norm": "projection"}


ARCHITECTURES = {"OlmoeForCausalLM": OlmoeForCausalLM}

"""Qwen3 with experts (30B-A3B, 235B-A22B, Coder): Qwen3 whose MLPs are mixtures of experts.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/qwen3_moe
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.decoder import Decoder


class Qwen3MoeForCausalLM(Decoder):
    """A Qwen3 decoder with experts."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "intermediate_size": 6144,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
        "norm_topk_prob": False,
        "mlp_only_layers": (),
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {"mlp_bias": False}

    @classmethod
    def options(cls, hf: Mapping[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        return {"qk_norm": "head"}


ARCHITECTURES = {"Qwen3MoeForCausalLM": Qwen3MoeForCausalLM}

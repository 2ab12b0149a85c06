"""Qwen2 with experts (57B-A14B, Qwen1.5-MoE): Qwen2 with a shared expert behind a gate.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/qwen2_moe
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.config import FULL, SLIDING
from rtpjax.models.decoder import Decoder


class Qwen2MoeForCausalLM(Decoder):
    """A Qwen2 decoder with experts."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "intermediate_size": 5632,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts_per_tok": 4,
        "num_experts": 60,
        "norm_topk_prob": False,
        "mlp_only_layers": (),
        "qkv_bias": True,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {"mlp_bias": False, "o_proj_bias": False}

    @classmethod
    def completed(cls, hf: dict[str, Any]) -> dict[str, Any]:
        """See CausalLM. Unlike in Qwen2, every other one of the first layers has the window."""
        hf["attention_bias"] = hf["qkv_bias"]
        if hf["use_sliding_window"]:
            first = hf["max_window_layers"]
            kinds = [
                SLIDING if i < first and i % 2 == 0 else FULL
                for i in range(hf["num_hidden_layers"])
            ]
            hf.setdefault("layer_types", kinds)
        return hf


ARCHITECTURES = {"Qwen2MoeForCausalLM": Qwen2MoeForCausalLM}

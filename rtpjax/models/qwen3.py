"""Qwen3 (dense): Llama with queries and keys normalized per head, and a head_dim of its own.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/qwen3
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.decoder import Decoder


class Qwen3ForCausalLM(Decoder):
    """A Qwen3 decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {"mlp_bias": False}

    @classmethod
    def options(cls, hf: Mapping[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        return {"qk_norm": "head"}


ARCHITECTURES = {"Qwen3ForCausalLM": Qwen3ForCausalLM}

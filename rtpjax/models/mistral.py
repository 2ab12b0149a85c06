"""Mistral: Llama with a sliding window in every layer, or in none.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/mistral
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.decoder import Decoder


class MistralForCausalLM(Decoder):
    """A Mistral decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 4096 * 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "sliding_window": 4096,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": True,
        "max_window_layers": 0,
    }


ARCHITECTURES = {"MistralForCausalLM": MistralForCausalLM}

"""Qwen2 and Qwen2.5: Llama with biases on q, k and v; upper layers may have a sliding window.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/qwen2
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.decoder import Decoder


class Qwen2ForCausalLM(Decoder):
    """A Qwen2 decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {
        "attention_bias": True,
        "o_proj_bias": False,
        "mlp_bias": False,
    }


ARCHITECTURES = {"Qwen2ForCausalLM": Qwen2ForCausalLM}

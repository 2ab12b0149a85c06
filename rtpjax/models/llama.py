"""Llama 2 and 3, and what is saved under that name: SmolLM2, Yi, TinyLlama, ...

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/llama
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.decoder import Decoder


class LlamaForCausalLM(Decoder):
    """A Llama decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }


ARCHITECTURES = {"LlamaForCausalLM": LlamaForCausalLM}

"""Phi-3 and Phi-4: Llama whose files join q, k and v, and gate and up (rtpjax.joined_tensors).

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/phi3
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.decoder import Decoder


class Phi3ForCausalLM(Decoder):
    """A Phi-3 or Phi-4 decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": True,
        "max_window_layers": 0,
    }


ARCHITECTURES = {"Phi3ForCausalLM": Phi3ForCausalLM}

"""OLMo 2: norms after each block and none before, queries and keys normalized over all heads.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/olmo2
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.config import BlockNorms
from rtpjax.models.decoder import Decoder


class Olmo2ForCausalLM(Decoder):
    """An OLMo 2 decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {"mlp_bias": False}

    @classmethod
    def options(cls, hf: Mapping[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        return {
            "norms": BlockNorms(
                before_attention=None,
                after_attention="post_attention_layernorm",
                before_mlp=None,
                after_mlp="post_feedforward_layernorm",
            ),
            "qk_norm": "projection",
        }


ARCHITECTURES = {"Olmo2ForCausalLM": Olmo2ForCausalLM}

"""GLM-4-0414 (dense): rope over half of a head in pairs of neighbours, norms around each block.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/glm4
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.config import BlockNorms
from rtpjax.models.decoder import Decoder


class Glm4ForCausalLM(Decoder):
    """A GLM-4 decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1.5625e-7,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {
        "o_proj_bias": False,
        "mlp_bias": False,
        "rope_is_interleaved": True,
    }

    @classmethod
    def options(cls, hf: Mapping[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        norms = BlockNorms(
            after_attention="post_self_attn_layernorm", after_mlp="post_mlp_layernorm"
        )
        return {"norms": norms}


class GlmForCausalLM(Glm4ForCausalLM):
    """The GLM-4 of 2024: no norms after blocks."""

    @classmethod
    def options(cls, hf: Mapping[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        return {}


ARCHITECTURES = {"Glm4ForCausalLM": Glm4ForCausalLM, "GlmForCausalLM": GlmForCausalLM}

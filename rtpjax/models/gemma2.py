"""Gemma 2: norms before and after each block, windows in every other layer, soft caps.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/gemma2
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.config import BlockNorms, windows_but_every
from rtpjax.models.decoder import Decoder


class GemmaDecoder(Decoder):
    """What Gemma 2 and 3 share."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": True,
        "use_bidirectional_attention": False,
    }

    @classmethod
    def completed(cls, hf: dict[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        types = windows_but_every(hf["sliding_window_pattern"], hf["num_hidden_layers"])
        return {"layer_types": types, **hf, "hidden_act": hf["hidden_activation"]}

    @classmethod
    def options(cls, hf: Mapping[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        return {
            "norms": BlockNorms(
                after_attention="post_attention_layernorm",
                before_mlp="pre_feedforward_layernorm",
                after_mlp="post_feedforward_layernorm",
            ),
            "norm_offset": 1.0,
            "qk_norm": "head",
            "attention_scale": hf["query_pre_attn_scalar"] ** -0.5,
            "attention_soft_cap": hf.get("attn_logit_softcapping"),
            "logits_soft_cap": hf.get("final_logit_softcapping"),
            "embedding_scale": math.sqrt(hf["hidden_size"]),
        }


class Gemma2ForCausalLM(GemmaDecoder):
    """A Gemma 2 decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        **GemmaDecoder.hf_defaults,
        "max_position_embeddings": 8192,
        "sliding_window_pattern": 2,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }

    @classmethod
    def options(cls, hf: Mapping[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        return super().options(hf) | {"qk_norm": None}


ARCHITECTURES = {"Gemma2ForCausalLM": Gemma2ForCausalLM}

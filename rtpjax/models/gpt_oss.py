"""gpt-oss (20b, 120b): windows and whole contexts in turn, attention sinks, experts with biases.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/gpt_oss
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.config import FULL, SLIDING
from rtpjax.models.decoder import Decoder


class GptOssForCausalLM(Decoder):
    """A gpt-oss decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": True,
        "sliding_window": 128,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {
        "mlp_bias": False,
        "use_sliding_window": True,
        "experts_bias": True,
        # The softmax over the chosen experts' products is that over all, made to add up to 1.
        "norm_topk_prob": True,
    }
    stored_names: ClassVar[Mapping[str, str]] = {r"\.mlp\.router\.": ".mlp.gate."}
    has_interleaved_experts = True

    @classmethod
    def completed(cls, hf: dict[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        kinds = [SLIDING if i % 2 == 0 else FULL for i in range(hf["num_hidden_layers"])]
        hf.setdefault("layer_types", kinds)
        if not (hf.get("rope_parameters") or hf.get("rope_scaling")):
            hf["rope_scaling"] = {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            }
        encoding = hf.get("quantization_config")
        if isinstance(encoding, Mapping) and encoding.get("quant_method") == "mxfp4":
            del hf["quantization_config"]  # experts alone; they are read as plain numbers
        return hf

    @classmethod
    def options(cls, hf: Mapping[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        return {"has_sinks": True}


ARCHITECTURES = {"GptOssForCausalLM": GptOssForCausalLM}

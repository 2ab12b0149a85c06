"""SmolLM3: Llama without rope in every fourth layer.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/smollm3
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.config import FULL, SLIDING
from rtpjax.models.decoder import Decoder


class SmolLM3ForCausalLM(Decoder):
    """A SmolLM3 decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": 2e6,
        "use_sliding_window": False,
        "no_rope_layer_interval": 4,
    }

    @classmethod
    def completed(cls, hf: dict[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        every, num_layers = hf["no_rope_layer_interval"], hf["num_hidden_layers"]
        hf.setdefault("no_rope_layers", [int((i + 1) % every != 0) for i in range(num_layers)])
        has_window = bool(hf["use_sliding_window"] and hf.get("sliding_window") is not None)
        types = [SLIDING if has_window and not has else FULL for has in hf["no_rope_layers"]]
        return {"layer_types": types, **hf}


ARCHITECTURES = {"SmolLM3ForCausalLM": SmolLM3ForCausalLM}

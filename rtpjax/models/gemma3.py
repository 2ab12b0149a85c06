"""Gemma 3 (text): windows in five layers of six, each kind with a rope of its own.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/gemma3
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.config import FULL, SLIDING
from rtpjax.models.gemma2 import GemmaDecoder


class Gemma3ForCausalLM(GemmaDecoder):
    """A Gemma 3 decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        **GemmaDecoder.hf_defaults,
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "sliding_window_pattern": 6,
    }

    @classmethod
    def completed(cls, hf: dict[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        hf = super().completed(hf)
        given = hf.get("rope_parameters") or {}
        full, sliding = given.get(FULL) or {}, given.get(SLIDING) or {}
        # Files of transformers 4 have one value for each; scaling is of the full layers alone.
        full = {"rope_theta": hf.pop("rope_theta", 1e6), **hf.pop("rope_scaling", {}), **full}
        sliding = {"rope_theta": hf.pop("rope_local_base_freq", 1e4), **sliding}
        return hf | {"rope_parameters": {FULL: full, SLIDING: sliding}}


ARCHITECTURES = {"Gemma3ForCausalLM": Gemma3ForCausalLM}
TEXT_ARCHITECTURES = {"Gemma3ForConditionalGeneration": "Gemma3ForCausalLM"}

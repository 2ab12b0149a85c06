"""OLMo 3: OLMo 2 with windows in three layers of four, and scaled rope in the others.

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/olmo3
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rtpjax.models.config import FULL, SLIDING, windows_but_every
from rtpjax.models.olmo2 import Olmo2ForCausalLM


class Olmo3ForCausalLM(Olmo2ForCausalLM):
    """An OLMo 3 decoder."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        **Olmo2ForCausalLM.hf_defaults,
        "sliding_window": 4096,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {"mlp_bias": False, "use_sliding_window": True}

    @classmethod
    def completed(cls, hf: dict[str, Any]) -> dict[str, Any]:
        """See CausalLM."""
        hf = {"layer_types": windows_but_every(4, hf["num_hidden_layers"]), **hf}
        given = hf.get("rope_parameters") or {}
        full, sliding = given.get(FULL) or {}, given.get(SLIDING) or {}
        # Files of transformers 4 have one value for each, which is of the full layers alone.
        full = {"rope_theta": hf.pop("rope_theta", 5e5), **hf.pop("rope_scaling", {}), **full}
        return hf | {"rope_parameters": {FULL: full, SLIDING: {"rope_theta": 5e5, **sliding}}}


ARCHITECTURES = {"Olmo3ForCausalLM": Olmo3ForCausalLM}

"""Options of mixture-of-experts layers, read from config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rtpjax.errors import CheckpointError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Shape of the layers that have experts.

    Attributes:
        num_experts: E.
        num_experts_per_tok: Experts that each token goes to.
        intermediate_size: Features inside an expert.
        norm_topk_prob: Whether the weights of a token's experts are made to add up to 1.
        layers: For each layer of the model, whether it has experts; the others have an MLP.
    """

    num_experts: int
    num_experts_per_tok: int
    intermediate_size: int
    norm_topk_prob: bool
    layers: tuple[bool, ...]

    @staticmethod
    def from_hf(hf: Mapping[str, Any], num_layers: int) -> MoeConfig:
        """Reads a config.json that has all of its family's values.

        Raises:
            CheckpointError: A value cannot be.
        """
        # transformers 5 saves the number under the second name.
        sizes = {
            "num_experts": hf.get("num_local_experts", hf["num_experts"]),
            "num_experts_per_tok": hf["num_experts_per_tok"],
            "moe_intermediate_size": hf["moe_intermediate_size"],
            "decoder_sparse_step": hf["decoder_sparse_step"],
        }
        for key, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise CheckpointError(
                    f"config.json: {key} must be a positive integer, found {value!r}."
                )
        num_experts, per_token, intermediate_size, step = sizes.values()
        if per_token > num_experts:
            raise CheckpointError(
                f"config.json: num_experts_per_tok is {per_token}, but there are {num_experts} "
                "experts."
            )
        dense = hf["mlp_only_layers"]
        return MoeConfig(
            num_experts=num_experts,
            num_experts_per_tok=per_token,
            intermediate_size=intermediate_size,
            norm_topk_prob=bool(hf["norm_topk_prob"]),
            layers=tuple(i not in dense and (i + 1) % step == 0 for i in range(num_layers)),
        )

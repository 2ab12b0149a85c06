"""Options of mixture-of-experts layers, read from config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from rtpjax.errors import CheckpointError

_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_NUM_SHARED = ("n_shared_experts", "num_shared_experts")
_SCALE = ("routed_scaling_factor", "router_scaling_factor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """How a token's experts are chosen, and what each one's result is multiplied with.

    scores of all experts -> + bias -> best groups of experts alone -> the best experts
    -> their scores, without the bias -> made to add up to 1 -> * scale

    Attributes:
        score: What makes scores of the router's products: over all experts, or of each alone.
        has_bias: Whether a bias is added to choose with (`e_score_correction_bias`).
        in_float32: Whether the products are of float32 numbers, not of the weights' format.
        num_groups: Groups of neighbouring experts.
        num_groups_per_tok: Groups that a token's experts come from: those whose two best experts
            have the largest sum.
        norm_topk_prob: Whether the weights of a token's experts are made to add up to 1.
        norm_eps: Added to their sum before they are divided by it.
        scale: Multiplies them after that.
    """

    score: Literal["softmax", "sigmoid"] = "softmax"
    has_bias: bool = False
    in_float32: bool = False
    num_groups: int = 1
    num_groups_per_tok: int = 1
    norm_topk_prob: bool = True
    norm_eps: float = 0.0
    scale: float = 1.0


# DeepSeek V3's, which many took over; config.json has its numbers.
SIGMOID_ROUTER: Mapping[str, Any] = {
    "router_score": "sigmoid",
    "router_has_bias": True,
    "router_in_float32": True,
    "router_norm_eps": 1e-20,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Shape of the layers that have experts.

    Attributes:
        num_experts: E.
        num_experts_per_tok: Experts that each token goes to.
        intermediate_size: Features inside an expert.
        layers: For each layer of the model, whether it has experts; the others have an MLP.
        router: How a token's experts are chosen.
        shared_size: Features of the MLP that all tokens go to besides; 0 if there is none.
        is_shared_gated: Whether a number per token, between 0 and 1, multiplies what it makes.
        has_biases: Whether the router's and the experts' products add a bias.
        clip: Where an expert's gated features are `(up + 1) * gate * sigmoid(swish_slope * gate)`,
            the largest gate and, up and down, the largest up; None where they are act(gate) * up.
        swish_slope: See clip.
    """

    num_experts: int
    num_experts_per_tok: int
    intermediate_size: int
    layers: tuple[bool, ...]
    router: RouterConfig = RouterConfig()
    shared_size: int = 0
    is_shared_gated: bool = False
    has_biases: bool = False
    clip: float | None = None
    swish_slope: float = 1.0

    @staticmethod
    def from_hf(hf: Mapping[str, Any], num_layers: int) -> MoeConfig:
        """Reads a config.json that has all of its family's values.

        Raises:
            CheckpointError: A value cannot be.
        """
        experts_key = _key(hf, _NUM_EXPERTS)
        num_experts = _integer(hf, experts_key)
        per_token = _integer(hf, "num_experts_per_tok")
        size_key = "moe_intermediate_size" if "moe_intermediate_size" in hf else "intermediate_size"
        groups, chosen = (
            _integer(hf, key) if key in hf else 1 for key in ("n_group", "topk_group")
        )
        if num_experts % groups or chosen > groups or (groups > 1 and num_experts < 2 * groups):
            raise CheckpointError(
                f"config.json: n_group {groups} must divide the {num_experts} experts into groups "
                f"of at least 2, and topk_group {chosen} cannot be more than n_group."
            )
        if per_token > chosen * num_experts // groups:
            raise CheckpointError(
                f"config.json: num_experts_per_tok is {per_token}, but a token can choose among "
                f"{chosen * num_experts // groups} of {num_experts} experts."
            )
        size = _integer(hf, size_key)
        return MoeConfig(
            num_experts=num_experts,
            num_experts_per_tok=per_token,
            intermediate_size=size,
            layers=_layers(hf, num_layers),
            router=RouterConfig(
                score=hf.get("router_score", "softmax"),
                has_bias=bool(hf.get("router_has_bias")),
                in_float32=bool(hf.get("router_in_float32")),
                num_groups=groups,
                num_groups_per_tok=chosen,
                norm_topk_prob=bool(hf["norm_topk_prob"]),
                norm_eps=float(hf.get("router_norm_eps", 0.0)),
                scale=float(hf.get(_key(hf, _SCALE), 1.0)),
            ),
            shared_size=_shared_size(hf, size),
            is_shared_gated="shared_expert_intermediate_size" in hf,
            has_biases=bool(hf.get("experts_bias")),
            clip=float(hf["swiglu_limit"]) if "swiglu_limit" in hf else None,
            swish_slope=float(hf.get("swiglu_alpha", 1.0)),
        )


def _key(hf: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The last of a key's names that is there: a family's default stands under the first."""
    return next((name for name in reversed(names) if name in hf), names[0])


def _integer(hf: Mapping[str, Any], key: str, least: int = 1) -> int:
    value = hf.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        kind = "a positive integer" if least else "an integer from 0"
        raise CheckpointError(f"config.json: {key} must be {kind}, found {value!r}.")
    return value


def _shared_size(hf: Mapping[str, Any], expert_size: int) -> int:
    if "shared_expert_intermediate_size" in hf:
        return _integer(hf, "shared_expert_intermediate_size")
    key = _key(hf, _NUM_SHARED)
    return expert_size * _integer(hf, key, least=0) if key in hf else 0


def _layers(hf: Mapping[str, Any], num_layers: int) -> tuple[bool, ...]:
    """Which layers have experts, in each of the ways that families say it."""
    if "mlp_layer_types" in hf:
        kinds = hf["mlp_layer_types"]
        if len(kinds) != num_layers or not set(kinds) <= {"dense", "sparse"}:
            raise CheckpointError(
                f"config.json: mlp_layer_types must say dense or sparse for each of the "
                f"{num_layers} layers, found {kinds!r}."
            )
        return tuple(kind == "sparse" for kind in kinds)
    first = _integer(hf, "first_k_dense_replace", least=0) if "first_k_dense_replace" in hf else 0
    step = _integer(hf, "decoder_sparse_step") if "decoder_sparse_step" in hf else 1
    dense = hf.get("mlp_only_layers", ())
    return tuple(i >= first and i not in dense and (i + 1) % step == 0 for i in range(num_layers))

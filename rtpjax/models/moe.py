"""Mixture of experts: each token goes to a few of many MLPs.

Paper: https://arxiv.org/abs/1701.06538

    token   0  1  2                 rows sorted by expert      experts are split over devices (axis
    experts a,c  b,c  a,c    ──►    a: 0 2 │ b: 1 │ c: 0 1 2    experts), their features too (axis
                                                               expert_mlp); every device adds what
                                                               its part makes of all tokens

Sorting keeps the shapes static: T x k rows, whatever the router says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.quantized import CONTRACT_LAST
from pallas_kernels.row_matmul import ACTIVATIONS
from pallas_kernels.sharded import MeshAxes
from rtpjax.models.layers import MLP, Linear, Normed, Summand
from rtpjax.models.moe_config import MoeConfig
from rtpjax.models.weight_formats import PLAIN, WeightFormat, param


class Router(Linear):
    """Chooses the experts of each token; see RouterConfig."""

    def __init__(self, config: MoeConfig, hidden_size: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        self.config = config.router
        self.num_chosen = config.num_experts_per_tok
        E = config.num_experts
        dtype = jnp.float32 if self.config.in_float32 else dtype
        super().__init__(
            (E, hidden_size), ("router", "embed"), dtype, bias=config.has_biases, rngs=rngs
        )
        # In fewer bits biases near each other become equal, and tokens go to other experts.
        self.e_score_correction_bias = (
            param((E,), ("router",), jnp.float32, rngs=rngs, init=nnx.initializers.zeros)
            if self.config.has_bias
            else None
        )

    def route(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Weights float32 `[T, k]` and ids int32 `[T, k]` of each token's experts.

        x: `[T, D]`.
        """
        config = self.config
        score = jax.nn.softmax if config.score == "softmax" else jax.nn.sigmoid
        scores = score(self._logits(x))
        for_choice = scores
        if self.e_score_correction_bias is not None:
            for_choice = scores + self.e_score_correction_bias.get_value()[None, :]
        if config.num_groups > 1:
            for_choice = self._of_best_groups(for_choice)
        shares, expert_ids = lax.top_k(for_choice, self.num_chosen)
        if for_choice is not scores:
            shares = jnp.take_along_axis(scores, expert_ids, axis=1)
        if config.norm_topk_prob:
            shares = shares / (shares.sum(axis=-1, keepdims=True) + config.norm_eps)
        return shares * config.scale, expert_ids

    def _logits(self, x: jax.Array) -> jax.Array:
        if not self.config.in_float32:
            logits = self.product(x)
            if self.bias is None:
                return logits
            return logits + self.bias.get_value().astype(jnp.float32)[None, :]
        # By default a GPU rounds float32 to the 10 bits of its tensor cores.
        return lax.dot_general(
            x.astype(jnp.float32),
            self.weight.get_value(),
            CONTRACT_LAST,
            precision=lax.Precision.HIGHEST,
        )

    def _of_best_groups(self, scores: jax.Array) -> jax.Array:
        """scores `[T, E]` with -inf for experts of the groups that a token does not choose."""
        T, E = scores.shape
        groups = scores.reshape(T, self.config.num_groups, -1)
        rank = lax.top_k(groups, 2)[0].sum(axis=-1)
        _, best = lax.top_k(rank, self.config.num_groups_per_tok)
        is_best = (best[:, :, None] == jnp.arange(self.config.num_groups)[None, None, :]).any(
            axis=1
        )
        return jnp.where(is_best[:, :, None], groups, -jnp.inf).reshape(T, E)


class ExpertLinear(nnx.Module):
    """The same projection of all experts: weight `[E, out, in]`.

    A checkpoint that has a tensor for each expert is stacked while it is read
    (rtpjax.expert_tensors).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        axes: tuple[str, str],
        dtype: DTypeLike,
        *,
        bias_axes: tuple[str, str] | None = None,
        rngs: nnx.Rngs,
    ):
        self.weight = param(shape, ("experts", *axes), dtype, rngs=rngs)
        zeros = nnx.initializers.zeros
        self.bias = (
            None if bias_axes is None else param(shape[:2], bias_axes, dtype, rngs=rngs, init=zeros)
        )


class Experts(nnx.Module):
    """The gated MLPs."""

    def __init__(self, config: MoeConfig, hidden_size: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        E, F, D = config.num_experts, config.intermediate_size, hidden_size
        linear = partial(ExpertLinear, dtype=dtype, rngs=rngs)
        wide = ("experts", "expert_mlp") if config.has_biases else None
        # Every device has all of it: it is added once, whatever part of an expert is where.
        narrow = ("router", "embed") if config.has_biases else None
        self.gate_proj = linear((E, F, D), ("expert_mlp", "embed"), bias_axes=wide)
        self.up_proj = linear((E, F, D), ("expert_mlp", "embed"), bias_axes=wide)
        self.down_proj = linear((E, D, F), ("embed", "expert_mlp"), bias_axes=narrow)


class MoE(nnx.Module):
    """A router and its experts, in the place of an MLP."""

    def __init__(
        self,
        config: MoeConfig,
        hidden_size: int,
        hidden_act: str,
        dtype: DTypeLike,
        *,
        shared_format: WeightFormat = PLAIN,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.hidden_act = hidden_act
        self.gate = Router(config, hidden_size, dtype, rngs=rngs)
        self.experts = Experts(config, hidden_size, dtype, rngs=rngs)
        shared = None
        if config.shared_size:
            shared = MLP(
                hidden_size, config.shared_size, hidden_act, dtype, format=shared_format, rngs=rngs
            )
        # Two names in checkpoints, and the gate tells which.
        self.shared_expert = shared if config.is_shared_gated else None
        self.shared_experts = None if config.is_shared_gated else shared
        self.shared_expert_gate = (
            Linear((1, hidden_size), ("router", "embed"), dtype, rngs=rngs)
            if config.is_shared_gated
            else None
        )

    def __call__(self, x: jax.Array | Normed, mesh: MeshAxes | None) -> Summand:
        """What it adds to the residual stream; see MLP."""
        normed = x.value if isinstance(x, Normed) else x
        shares, expert_ids = self.gate.route(normed)
        experts = self.experts
        weights = (
            experts.gate_proj.weight.get_value(),
            experts.up_proj.weight.get_value(),
            experts.down_proj.weight.get_value(),
        )
        biases = tuple(
            None if projection.bias is None else projection.bias.get_value()
            for projection in (experts.gate_proj, experts.up_proj)
        )
        every = jnp.arange(self.config.num_experts, dtype=jnp.int32)
        apply = partial(_apply_experts, gated=self._gated)
        if mesh is not None and mesh.mesh.size > 1:
            apply = _over_mesh(mesh, apply)
        added = apply(normed, shares, expert_ids, every, weights, biases)
        if experts.down_proj.bias is not None:
            bias = experts.down_proj.bias.get_value()[expert_ids].astype(jnp.float32)  # [T, k, D]
            added = added + (shares[:, :, None] * bias).sum(axis=1)
        return Summand(self._with_shared(added, x, normed, mesh).astype(normed.dtype))

    def _gated(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """An expert's features of its two products, each float32 `[rows, F]`."""
        clip = self.config.clip
        if clip is None:
            return ACTIVATIONS[self.hidden_act](gate) * up
        gate, up = jnp.minimum(gate, clip), jnp.clip(up, -clip, clip)
        return (up + 1) * gate * jax.nn.sigmoid(self.config.swish_slope * gate)

    def _with_shared(
        self, added: jax.Array, x: jax.Array | Normed, normed: jax.Array, mesh: MeshAxes | None
    ) -> jax.Array:
        """added float32 `[T, D]` with what the shared expert makes of every token."""
        if self.shared_experts is not None:
            return added + self.shared_experts(x, mesh).value.astype(jnp.float32)
        if self.shared_expert is None or self.shared_expert_gate is None:
            return added
        share = jax.nn.sigmoid(self.shared_expert_gate.product(normed))
        return added + share * self.shared_expert(x, mesh).value.astype(jnp.float32)


def _over_mesh(mesh: MeshAxes, apply: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Each device applies its experts, or its features of them; their sums are added up."""
    widening = P(mesh.experts, mesh.expert_mlp, None)
    narrowing = P(mesh.experts, None, mesh.expert_mlp)

    def local(*args: jax.Array) -> jax.Array:
        return lax.psum(apply(*args), (*mesh.experts, *mesh.expert_mlp))

    weights = (widening, widening, narrowing)
    biases = (P(mesh.experts, mesh.expert_mlp),) * 2
    return mesh.map(local, (P(), P(), P(), P(mesh.experts), weights, biases), P())


def _starts(group: jax.Array, num_groups: int) -> jax.Array:
    """Where each group starts among the rows sorted by group, and the last one ends.

    Counts the rows of lower groups. A binary search of the sorted ones is a loop of launches on
    GPUs, each of which takes longer than all comparisons.

    Args:
        group: int32 `[rows]`, in any order.
        num_groups: E.

    Returns:
        int32 `[E + 1]`.
    """
    edges = jnp.arange(num_groups + 1, dtype=group.dtype)
    return (group[None, :] < edges[:, None]).sum(axis=1, dtype=jnp.int32)


def _apply_experts(
    x: jax.Array,
    shares: jax.Array,
    expert_ids: jax.Array,
    own_ids: jax.Array,
    weights: tuple[jax.Array, jax.Array, jax.Array],
    biases: tuple[jax.Array | None, ...],
    *,
    gated: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """What a device's experts add to each token.

    Args:
        x: `[T, D]`.
        shares: float32 `[T, k]`.
        expert_ids: int32 `[T, k]`.
        own_ids: int32 `[E]`, ids of the experts that are here, consecutive.
        weights: Of gate_proj, up_proj `[E, F, D]` and down_proj `[E, D, F]`.
        biases: Of gate_proj and up_proj `[E, F]`, or None.
        gated: Makes features of the two products.

    Returns:
        float32 `[T, D]`.
    """
    T, k, E = *shares.shape, own_ids.shape[0]
    gate_proj, up_proj, down_proj = weights
    own = expert_ids.reshape(-1) - own_ids[0]
    group = jnp.where((own >= 0) & (own < E), own, E)  # others' rows come last, in no group
    order = jnp.argsort(group)
    sorted_group = group[order]
    starts = _starts(group, E)
    rows = x[lax.div(order, jnp.asarray(k, order.dtype))].astype(gate_proj.dtype)
    products = [grouped_matmul(rows, projection, starts) for projection in (gate_proj, up_proj)]
    for i, bias in enumerate(biases):
        if bias is not None:
            # Rows of no group take the last expert's; what they make is left out below.
            products[i] += bias.at[sorted_group].get(mode="clip").astype(jnp.float32)
    hidden = gated(*products)
    out = grouped_matmul(hidden.astype(down_proj.dtype), down_proj, starts)
    out = jnp.where((sorted_group < E)[:, None], out * shares.reshape(-1)[order][:, None], 0.0)
    return out[jnp.argsort(order)].reshape(T, k, -1).sum(axis=1)

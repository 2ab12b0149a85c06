"""Layers of experts, as Qwen3-30B-A3B has them: 8 of 128 for each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from rtpjax.lab.stage import Lab
from rtpjax.lab.steps import DataSheet, random_array
from rtpjax.lab.timing import seconds_each
from rtpjax.models.layers import RMSNorm
from rtpjax.models.moe import MoE
from rtpjax.models.moe_config import MoeConfig

_LAYERS = 3  # one after the other, so that L2 does not hold their weights


def run(lab: Lab) -> None:
    D, F, E, k = lab.pick((2048, 768, 128, 8), (32, 16, 8, 2))
    config = MoeConfig(
        num_experts=E,
        num_experts_per_tok=k,
        intermediate_size=F,
        layers=(True,),
    )
    _starts(lab, E, 64 * k)
    program, arrays = _layers(config, D)
    for tokens in lab.pick((1, 8, 64), (2, 4)):
        with lab.record.attempt(f"moe.{tokens}"):
            x = random_array("x", (tokens, D))
            s = seconds_each(partial(program, arrays, x), calls=lab.pick(20, 1)) / _LAYERS
            touched = min(E, tokens * k)  # at most: tokens may share experts
            least = DataSheet.of(lab).us(touched * 3 * D * F * 2)
            lab.record.measured(f"moe.{tokens}", 1e6 * s, "us", limit=least)


def _starts(lab: Lab, num_experts: int, num_rows: int) -> None:
    """Where each expert's rows begin, in a loop as it was, and without."""
    groups = jnp.sort(jax.random.randint(jax.random.key(0), (num_rows,), 0, num_experts))
    edges = jnp.arange(num_experts + 1, dtype=groups.dtype)
    for name, method in (("loop", "scan"), ("no_loop", "compare_all")):
        with lab.record.attempt(f"moe.starts.{name}"):
            search = jax.jit(partial(jnp.searchsorted, method=method))
            s = seconds_each(partial(search, groups, edges), calls=lab.pick(20, 1))
            lab.record.measured(f"moe.starts.{name}", 1e6 * s, "us")


def _layers(
    config: MoeConfig, hidden_size: int
) -> tuple[Callable[..., jax.Array], Sequence[jax.Array]]:
    """A program of all layers, and their weights: a flat tuple, which costs the host least."""

    def make() -> list[tuple[MoE, RMSNorm]]:
        rngs, dtype = nnx.Rngs(0), jnp.bfloat16
        return [
            (
                MoE(config, hidden_size, "silu", dtype, rngs=rngs),
                RMSNorm(hidden_size, "embed", dtype, eps=1e-6, rngs=rngs),
            )
            for _ in range(_LAYERS)
        ]

    graph, state = nnx.split(nnx.eval_shape(make))
    leaves, tree = jax.tree.flatten(state)

    @jax.jit
    def call(arrays: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        for layer, norm in nnx.merge(graph, jax.tree.unflatten(tree, arrays)):
            x = x + layer(norm(x), None)
        return x

    return call, [random_array(f"moe {i}", x.shape, x.dtype) for i, x in enumerate(leaves)]

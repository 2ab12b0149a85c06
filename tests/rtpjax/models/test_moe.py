"""Experts split over devices, by expert and by feature, make what one device makes."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rtpjax import sharding
from rtpjax.models import ModelConfig
from rtpjax.models.layers import RMSNorm
from rtpjax.models.moe import MoE, _starts
from tests.golden import cases

CONFIG = ModelConfig.from_hf(cases.CASES["qwen3_moe"].config)
T, D = 13, CONFIG.hidden_size


def by_hand(moe: MoE, norm: RMSNorm, x: np.ndarray) -> np.ndarray:
    """Token by token, expert by expert, added to x."""
    assert CONFIG.moe is not None
    experts = moe.experts
    gate, up, down = (
        np.asarray(projection.weight.get_value(), np.float64)
        for projection in (experts.gate_proj, experts.up_proj, experts.down_proj)
    )
    out = x.astype(np.float64)
    for t, row in enumerate(x.astype(np.float64)):
        token = row / np.sqrt(np.mean(row**2) + norm.eps) * norm.weight.get_value()
        scores = np.exp(np.asarray(moe.gate.weight.get_value(), np.float64) @ token)
        chosen = np.argsort(-scores)[: CONFIG.moe.num_experts_per_tok]
        for e in chosen:
            wide = gate[e] @ token
            hidden = wide / (1 + np.exp(-wide)) * (up[e] @ token)
            out[t] += scores[e] / scores[chosen].sum() * (down[e] @ hidden)
    return out


@pytest.mark.parametrize(("tp_size", "ep_size"), [(1, 1), (4, 1), (4, 4), (4, 2), (8, 4)])
def test_split_experts(tp_size: int, ep_size: int):
    assert CONFIG.moe is not None
    with jax.default_matmul_precision("highest"):
        moe = MoE(CONFIG.moe, D, "silu", jnp.float32, rngs=nnx.Rngs(0))
        experts = moe.experts
        for i, projection in enumerate((experts.gate_proj, experts.up_proj, experts.down_proj)):
            shape = projection.weight.get_value().shape
            projection.weight.set_value(jnp.asarray(cases.weight(f"experts {i}", shape)))
        moe.gate.weight.set_value(jnp.asarray(cases.weight("gate", (8, D))))
        norm = RMSNorm(D, "embed", jnp.float32, eps=1e-5, rngs=nnx.Rngs(0))
        norm.weight.set_value(jnp.asarray(1 + cases.weight("norm", (D,))))
        mesh = sharding.make_mesh(tp_size, ep_size=ep_size, model=CONFIG)
        # Most tokens go to few experts: some have no row at all.
        x = cases.weight("x", (T, D)) + 2 * cases.weight("same for all", (1, D))
        graph, state = nnx.split(moe)
        axes = sharding.mesh_axes(mesh)
        run = jax.jit(lambda s, x: x + nnx.merge(graph, s)(norm(x), axes))
        where = partial(sharding.named_sharding, mesh)
        placed = jax.tree.map(
            lambda leaf: jax.device_put(
                leaf.get_value(), where(leaf.get_metadata("axes"), leaf.shape)
            ),
            nnx.state(moe),
            is_leaf=lambda leaf: isinstance(leaf, nnx.Param),
        )
        got = run(jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(placed)), x)
    np.testing.assert_allclose(got, by_hand(moe, norm, x), atol=2e-5, rtol=0)


@pytest.mark.parametrize("num_rows", [1, 8, 512])
def test_groups_start_where_a_binary_search_finds_them(num_rows: int):
    """Groups without rows, and rows of no group, whose number is E."""
    rng = np.random.default_rng(num_rows)
    group = rng.choice([0, 2, 3, 6, 8], num_rows).astype(np.int32)
    got = _starts(jnp.asarray(group), 8)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, np.searchsorted(np.sort(group), np.arange(9)))


def test_sorting_by_expert_is_no_loop():
    lowered = jax.jit(partial(_starts, num_groups=128)).lower(jnp.zeros(64, jnp.int32))
    assert "while" not in lowered.as_text()

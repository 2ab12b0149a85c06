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
from rtpjax.models.moe_config import MoeConfig
from tests.golden import cases

T, D = 13, 32
# Softmax alone; a shared expert behind a gate; groups, a bias for the choice and two shared
# experts; biases of all products, and gated features of bounded products.
CASES = ["qwen3_moe", "qwen2_moe", "glm4_moe", "gpt_oss"]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def mlp(gate: np.ndarray, up: np.ndarray, down: np.ndarray, token: np.ndarray) -> np.ndarray:
    wide = gate @ token
    return down @ (wide * sigmoid(wide) * (up @ token))


def by_hand(config: MoeConfig, params: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Token by token, expert by expert, added to x."""
    p = {name: value.astype(np.float64) for name, value in params.items()}
    parts = [f"{name}_proj.weight" for name in ("gate", "up", "down")]
    biases = [part.replace("weight", "bias") for part in parts]
    out = x.astype(np.float64)
    for t, row in enumerate(x.astype(np.float64)):
        token = row / np.sqrt(np.mean(row**2) + 1e-5) * p["norm"]
        logits = p["gate.weight"] @ token + p.get("gate.bias", 0.0)
        is_softmax = config.router.score == "softmax"
        scores = np.exp(logits) / np.exp(logits).sum() if is_softmax else sigmoid(logits)
        choice = scores + p.get("gate.e_score_correction_bias", 0.0)
        groups = choice.reshape(config.router.num_groups, -1)
        if len(groups) > 1:
            rank = np.sort(groups, axis=1)[:, -2:].sum(axis=1)
            groups[np.argsort(-rank)[config.router.num_groups_per_tok :]] = -np.inf
        chosen = np.argsort(-groups.reshape(-1))[: config.num_experts_per_tok]
        shares = scores[chosen]
        if config.router.norm_topk_prob:
            shares = shares / shares.sum()
        for e, share in zip(chosen, shares * config.router.scale, strict=True):
            if config.clip is not None:
                (gate, up, down), b = (
                    [p[f"experts.{part}"][e] for part in kind] for kind in (parts, biases)
                )
                wide = np.minimum(gate @ token + b[0], config.clip)
                raised = 1 + np.clip(up @ token + b[1], -config.clip, config.clip)
                hidden = raised * wide * sigmoid(config.swish_slope * wide)
                out[t] += share * (down @ hidden + b[2])
                continue
            out[t] += share * mlp(*(p[f"experts.{part}"][e] for part in parts), token)
        if config.is_shared_gated:
            share = sigmoid(p["shared_expert_gate.weight"] @ token)
            out[t] += share * mlp(*(p[f"shared_expert.{part}"] for part in parts), token)
        elif config.shared_size:
            out[t] += mlp(*(p[f"shared_experts.{part}"] for part in parts), token)
    return out


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize(("tp_size", "ep_size"), [(1, 1), (4, 1), (4, 4), (4, 2), (8, 4)])
def test_split_experts(case_name: str, tp_size: int, ep_size: int):
    counts = dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 8)
    hf = cases.CASES[case_name].config | counts
    model = ModelConfig.from_hf(hf)
    config = model.moe
    assert config is not None
    with jax.default_matmul_precision("highest"):
        moe = MoE(config, D, "silu", jnp.float32, rngs=nnx.Rngs(0))
        norm = RMSNorm(D, "embed", jnp.float32, eps=1e-5, rngs=nnx.Rngs(0))
        params = {"norm": 1 + cases.weight("norm", (D,))}
        norm.weight.set_value(jnp.asarray(params["norm"]))
        for path, leaf in nnx.to_flat_state(nnx.state(moe)):
            name = ".".join(map(str, path))
            params[name] = cases.weight(name, leaf.get_value().shape)
            leaf.set_value(jnp.asarray(params[name]))
        mesh = sharding.make_mesh(tp_size, ep_size=ep_size, model=model)
        # Most tokens go to few experts: some have no row at all.
        x = cases.weight("x", (T, D)) + 2 * cases.weight("same for all", (1, D))
        graph, state = nnx.split(moe)
        axes = sharding.mesh_axes(mesh)
        run = jax.jit(lambda s, x: x + nnx.merge(graph, s)(norm(x), axes))
        where = partial(sharding.named_sharding, mesh)
        placed = [
            jax.device_put(
                params[".".join(map(str, path))], where(leaf.get_metadata("axes"), leaf.shape)
            )
            for path, leaf in nnx.to_flat_state(state)
        ]
        got = run(jax.tree.unflatten(jax.tree.structure(state), placed), x)
    np.testing.assert_allclose(got, by_hand(config, params, x), atol=2e-5, rtol=0)


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

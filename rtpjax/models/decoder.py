"""The decoder that families of text models share; what differs is an option of ModelConfig.

    x = embedding(token ids) * embedding_scale
    each layer:
        x = x + attention(norm(x))          norms before, after, or both (BlockNorms);
        x = x + mlp(norm(x))                mlp: gated features, or experts
    logits = norm(x) @ lm_head

`norm(x)` and what a block adds are lazy (layers.Normed, layers.Projected): the kernels of products
compute norm, product and sum at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.registry import current_choice
from pallas_kernels.sharded import MeshAxes
from rtpjax.models import rope
from rtpjax.models.cache import Caches, LayerCache, PagedCache, Pages
from rtpjax.models.config import ModelConfig
from rtpjax.models.layers import (
    MLP,
    Angles,
    Attention,
    Embedding,
    Linear,
    Normed,
    Projected,
    RMSNorm,
    Summand,
)
from rtpjax.models.moe import MoE
from rtpjax.models.precision import Precision
from rtpjax.models.registry import CausalLM
from rtpjax.models.step import StepInputs


class DecoderLayer(nnx.Module):
    """Attention and MLP, each added to the residual stream, with norms before, after, or both.

    Args:
        config: Of the model.
        layer: Which one this is, from 0.
        precision: Number formats.
        rngs: For the initial values.
    """

    def __init__(self, config: ModelConfig, layer: int, precision: Precision, *, rngs: nnx.Rngs):
        D, dtype = config.hidden_size, precision.weights
        self.self_attn = Attention(config, layer, dtype, rngs=rngs)
        format = config.quantization.layers
        if config.moe is not None and config.moe.layers[layer]:
            self.mlp = MoE(config.moe, D, config.hidden_act, dtype, shared_format=format, rngs=rngs)
        else:
            self.mlp = MLP(
                D,
                config.intermediate_size,
                config.hidden_act,
                dtype,
                format=format,
                bias=config.mlp_bias,
                rngs=rngs,
            )
        self.norms = config.norms
        self.residual_scale = config.residual_scale
        for name in filter(None, dataclasses.astuple(self.norms)):
            norm = RMSNorm(
                D, "embed", dtype, eps=config.rms_norm_eps, offset=config.norm_offset, rngs=rngs
            )
            setattr(self, name, norm)

    def __call__(
        self, x: jax.Array, angles: Angles, step: StepInputs, cache: LayerCache
    ) -> tuple[jax.Array, PagedCache]:
        """x `[T, D]` -> `[T, D]` and the cache's pages with this step's tokens."""
        norms = self.norms
        attended, pages = self.self_attn(
            self._normed(norms.before_attention, x), angles, step, cache
        )
        x = x + self._added(norms.after_attention, attended)
        changed = self.mlp(self._normed(norms.before_mlp, x), step.mesh)
        return x + self._added(norms.after_mlp, changed), pages

    def _normed(self, name: str | None, x: jax.Array) -> jax.Array | Normed:
        return x if name is None else getattr(self, name)(x)

    def _added(self, name: str | None, block: Projected | Summand) -> Projected | Summand:
        """What is added to the residual stream of what a block makes."""
        if name is None and self.residual_scale == 1.0:
            return block
        value = block.value if name is None else getattr(self, name)(block.value).value
        return Summand(value * self.residual_scale)


@partial(jax.jit, static_argnums=(0, 1))
def _run_layer(
    graph: nnx.GraphDef[DecoderLayer], choice: Hashable, state: nnx.State, *args: Any
) -> tuple[jax.Array, PagedCache]:
    """Calls a layer.

    As a function of its own it is traced once for all layers that are alike: 0.1 s in place of
    0.6 s for 30 layers. XLA inlines it, so the layers are still unrolled. It is traced anew where
    implementations are chosen otherwise (`current_choice`).
    """
    del choice
    return nnx.merge(graph, state)(*args)


class DecoderModel(nnx.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: ModelConfig, precision: Precision, *, rngs: nnx.Rngs):
        self.ropes = tuple(dict.fromkeys(rope for rope in config.layer_ropes if rope is not None))
        self.embed_tokens = Embedding(config, precision, rngs=rngs)
        self.layers = nnx.List(
            [
                DecoderLayer(config, layer, precision, rngs=rngs)
                for layer in range(config.num_hidden_layers)
            ]
        )
        self.norm = RMSNorm(
            config.hidden_size,
            "embed",
            precision.weights,
            eps=config.rms_norm_eps,
            offset=config.norm_offset,
            rngs=rngs,
        )

    def __call__(
        self, token_ids: jax.Array, step: StepInputs, caches: Caches
    ) -> tuple[jax.Array, Caches]:
        """token_ids int32 `[T]` -> hidden states `[T, D]` and the updated caches."""
        x = self.embed_tokens(token_ids)
        angles = {one: rope.cos_sin(one, step.positions) for one in self.ropes}
        choice = current_choice()
        for i, layer in enumerate(self.layers):
            graph, state = nnx.split(layer)
            used = {one: angles[one] for one in (layer.self_attn.rope,) if one is not None}
            x, pages = _run_layer(graph, choice, state, x, used, step, caches.layer(i, step))
            caches = caches.updated(i, pages)
        return self.norm(x).value, caches


class Decoder(CausalLM):
    """A decoder of text, by the options of ModelConfig; a family says which (CausalLM.options)."""

    def __init__(self, config: ModelConfig, precision: Precision, *, rngs: nnx.Rngs):
        self.config = config
        self.model = DecoderModel(config, precision, rngs=rngs)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(
                (config.vocab_size, config.hidden_size),
                ("vocab", "embed"),
                precision.weights,
                format=config.quantization.head,
                rngs=rngs,
            )
        )

    def __call__(
        self, token_ids: jax.Array, step: StepInputs, caches: Caches
    ) -> tuple[jax.Array, Caches]:
        """See CausalLM."""
        return self.model(token_ids, step, caches)

    def logits(self, hidden: jax.Array, mesh: MeshAxes | None = None) -> jax.Array:
        """See CausalLM."""
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        logits = head.product(hidden, mesh)
        if self.config.logits_scale != 1.0:
            logits = logits * self.config.logits_scale
        cap = self.config.logits_soft_cap
        return logits if cap is None else jnp.tanh(logits / cap) * cap

    def cache_specs(self) -> tuple[Pages, ...]:
        """See CausalLM."""
        heads, size = self.config.num_key_value_heads, self.config.head_dim
        return tuple(Pages(heads, size, size, window) for window in self.config.layer_windows)

"""Llama 2 and 3, and what is saved under that name: SmolLM2, Yi, TinyLlama, ...

Source: https://github.com/huggingface/transformers/tree/main/src/transformers/models/llama
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.registry import current_choice
from pallas_kernels.sharded import MeshAxes
from rtpjax.models import rope
from rtpjax.models.config import ModelConfig
from rtpjax.models.layers import MLP, Attention, Embedding, Linear, RMSNorm
from rtpjax.models.moe import MoE
from rtpjax.models.precision import Precision
from rtpjax.models.registry import CausalLM
from rtpjax.models.step import CacheSpec, PagedCache, StepInputs


class LlamaDecoderLayer(nnx.Module):
    """Attention and MLP, each normalized before and added to the residual stream.

    Args:
        config: Of the model.
        layer: Which one this is, from 0.
        precision: Number formats.
        rngs: For the initial values.
    """

    def __init__(self, config: ModelConfig, layer: int, precision: Precision, *, rngs: nnx.Rngs):
        D, dtype, eps = config.hidden_size, precision.weights, config.rms_norm_eps
        self.self_attn = Attention(config, config.layer_windows[layer], dtype, rngs=rngs)
        self.mlp = (
            MoE(config.moe, D, config.hidden_act, dtype, rngs=rngs)
            if config.moe is not None and config.moe.layers[layer]
            else MLP(config, dtype, rngs=rngs)
        )
        self.input_layernorm = RMSNorm(D, "embed", dtype, eps=eps, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(D, "embed", dtype, eps=eps, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        cos_sin: tuple[jax.Array, jax.Array],
        step: StepInputs,
        cache: PagedCache,
    ) -> tuple[jax.Array, PagedCache]:
        """x `[T, D]` -> `[T, D]` and the cache with this step's tokens."""
        x, cache = self.self_attn(x, self.input_layernorm, cos_sin, step, cache)
        return self.mlp(x, self.post_attention_layernorm, step.mesh), cache


@partial(jax.jit, static_argnums=(0, 1))
def _run_layer(
    graph: nnx.GraphDef[LlamaDecoderLayer], choice: Hashable, state: nnx.State, *args: Any
) -> tuple[jax.Array, PagedCache]:
    """Calls a layer.

    As a function of its own it is traced once for all layers that are alike: 0.1 s in place of
    0.6 s for 30 layers. XLA inlines it, so the layers are still unrolled. It is traced anew where
    implementations are chosen otherwise (`current_choice`).
    """
    del choice
    return nnx.merge(graph, state)(*args)


class LlamaModel(nnx.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: ModelConfig, precision: Precision, *, rngs: nnx.Rngs):
        D = config.hidden_size
        self.rope = config.rope
        self.embed_tokens = Embedding(config, precision, rngs=rngs)
        self.layers = nnx.List(
            [
                LlamaDecoderLayer(config, layer, precision, rngs=rngs)
                for layer in range(config.num_hidden_layers)
            ]
        )
        self.norm = RMSNorm(D, "embed", precision.weights, eps=config.rms_norm_eps, rngs=rngs)

    def __call__(
        self, token_ids: jax.Array, step: StepInputs, caches: tuple[PagedCache, ...]
    ) -> tuple[jax.Array, tuple[PagedCache, ...]]:
        """token_ids int32 `[T]` -> hidden states `[T, D]` and the updated caches."""
        # Of one row XLA makes a slice, and sends the whole embedding to every device for it.
        num_tokens = token_ids.shape[0]
        x = self.embed_tokens(jnp.pad(token_ids, (0, max(0, 2 - num_tokens))))[:num_tokens]
        cos_sin = rope.cos_sin(self.rope, step.positions)
        choice = current_choice()
        layers, new_caches = iter(self.layers), []
        num_pages = sum(len(cache.k_pages) for cache in caches) // len(self.layers)
        for cache in caches:
            total, page_size = cache.k_pages.shape[:2]
            for first_page in range(0, total, num_pages):
                graph, state = nnx.split(next(layers))
                inputs = step.from_page(first_page, page_size)
                x, cache = _run_layer(graph, choice, state, x, cos_sin, inputs, cache)
            new_caches.append(cache)
        return self.norm(x), tuple(new_caches)


class LlamaForCausalLM(CausalLM):
    """A Llama decoder; families that differ by options only derive from it."""

    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }
    hf_fixed: ClassVar[Mapping[str, Any]] = {"qk_norm": False}

    def __init__(self, config: ModelConfig, precision: Precision, *, rngs: nnx.Rngs):
        self.config = config
        self.model = LlamaModel(config, precision, rngs=rngs)
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
        self, token_ids: jax.Array, step: StepInputs, caches: tuple[PagedCache, ...]
    ) -> tuple[jax.Array, tuple[PagedCache, ...]]:
        """See CausalLM."""
        return self.model(token_ids, step, caches)

    def logits(self, hidden: jax.Array, mesh: MeshAxes | None = None) -> jax.Array:
        """See CausalLM."""
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return head.product(hidden, mesh)

    def cache_specs(self) -> tuple[CacheSpec, ...]:
        """See CausalLM."""
        heads, head_dim = self.config.num_key_value_heads, self.config.head_dim
        return tuple(CacheSpec(heads, head_dim, window) for window in self.config.layer_windows)


ARCHITECTURES = {"LlamaForCausalLM": LlamaForCausalLM}

"""The two programs of a step, as pure functions; the runner compiles and calls them.

    forward   packed vector -> tokens (pending ones are read where the step before wrote them)
              -> model (writes the cache, attends over it) -> logits of the tokens to sample after
    choose    logits -> sampled tokens, each written to its slot for the next step to read

They are two because a grammar's mask depends on the token before: the host learns that token and
makes the mask while the device is busy with `forward`. Both donate what they update.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from rtpjax.engine.batch import Layout, row_inputs, unpack
from rtpjax.engine.sampling import Sampled, SlotState, sample
from rtpjax.models import CacheSpec, LayerCache, ModelConfig, build
from rtpjax.models.precision import Precision

Caches = tuple[LayerCache, ...]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model without its parameters, which each call brings as a flat tuple.

    jax.jit takes a flat tuple of hundreds of arrays several times faster than a module or a tree.

    Attributes:
        graph, tree: Put parameters together to a module.
        cache_specs: What each layer caches.
        mesh: Devices that it is split over.
    """

    graph: Any
    tree: Any
    cache_specs: tuple[CacheSpec, ...]
    mesh: Mesh

    @staticmethod
    def of(config: ModelConfig, precision: Precision, mesh: Mesh) -> Model:
        """The model of a configuration; makes no arrays."""
        model = build(config, precision, abstract=True)
        graph, state = nnx.split(model)
        return Model(graph, jax.tree.structure(state), model.cache_specs(), mesh)

    def with_params(self, params: tuple[jax.Array, ...]) -> Any:
        """The module with these parameters, in the order of rtpjax.models.abstract_state."""
        return nnx.merge(self.graph, jax.tree.unflatten(self.tree, params))


def forward(
    model: Model,
    layout: Layout,
    params: tuple[jax.Array, ...],
    vector: jax.Array,
    caches: Caches,
    tokens: jax.Array,
) -> tuple[jax.Array, jax.Array, Caches, jax.Array]:
    """Everything up to the logits. Caches and tokens are donated.

    Args:
        model: Which model.
        layout: Of the vector.
        params: Its parameters.
        vector: int32 `[layout.size]`, the packed step.
        caches: One per layer.
        tokens: int32 `[slots, max_model_len + 1]`, see SlotState.

    Returns:
        Logits float32 `[B, V]`, the rows' fields int32 `[B, F]`, and what was donated, updated.
    """
    module = model.with_params(params)
    token_ids, token_slots, inputs, packed_rows = unpack(vector, layout, tokens)
    tokens = tokens.at[token_slots, inputs.positions].set(token_ids, mode="drop")
    inputs = dataclasses.replace(inputs, mesh=model.mesh)
    hidden, caches = module(token_ids, inputs, caches)
    logits = module.logits(hidden[row_inputs(packed_rows).sample_at])
    return logits, packed_rows, caches, tokens


def choose(
    num_tokens: int,
    logits: jax.Array,
    packed_rows: jax.Array,
    has_mask: jax.Array,
    state: SlotState,
) -> tuple[Sampled, SlotState]:
    """A token for each row. The state is donated.

    Args:
        num_tokens: Tokens that the tokenizer knows; ids beyond are never sampled.
        logits: float32 `[B, V]`.
        packed_rows: int32 `[B, F]`, from forward.
        has_mask: bool `[B]`; True if the slot's mask says what may be sampled.
        state: Per-request state; holds all tokens before the sampled ones.
    """
    rows = row_inputs(packed_rows)
    sampled = sample(logits, rows, has_mask, state, num_tokens)
    tokens = state.tokens.at[rows.sample_slots, rows.context_lens]
    return sampled, state._replace(tokens=tokens.set(sampled.token_ids, mode="drop"))

"""Runs a model step by step over a paged cache, as the engine's runner does.

Pages that no sequence owns hold NaN, and pages are handed out in scrambled order, so that a wrong
slot read or written shows. Every step has a padding row and, when it extends, padding tokens.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rtpjax.engine import kv_cache
from rtpjax.models import Caches, CausalLM, ModelConfig, Precision, StepInputs, build
from rtpjax.models import abstract_state as abstract_state_of
from rtpjax.sharding import make_mesh
from tests.golden import cases

PAGE_SIZE = 4
FP32 = Precision.of("FP32", "cpu")


def golden_model(case_name: str, precision: Precision = FP32) -> CausalLM:
    """The model of a golden case, with the case's weights."""
    config = ModelConfig.from_hf(cases.CASES[case_name].config)
    leaves = [
        jnp.asarray(cases.weight(name, spec.shape), spec.dtype) + spec.offset
        for name, spec in abstract_state_of(config, precision).items()
    ]
    graphdef, state = nnx.split(build(config, precision, abstract=True))
    return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(state), leaves))


def _garbage(like: jax.ShapeDtypeStruct) -> jax.Array:
    """Full of NaN; int8 has none, but its scales have."""
    is_whole = jnp.issubdtype(like.dtype, jnp.integer)
    return jnp.full(like.shape, 127 if is_whole else jnp.nan, like.dtype)


class PagedRun:
    """Sequences of one model, each with its pages.

    Attributes:
        lens: Tokens that each sequence has in the cache.
    """

    def __init__(self, model: CausalLM, num_rows: int, max_len: int, dtype=jnp.float32):
        pages_per_row = -(-max_len // PAGE_SIZE)
        num_pages = 1 + 2 * num_rows * pages_per_row
        groups, rng = kv_cache.windows_of(model.cache_specs()), np.random.default_rng(0)
        owned = [1 + rng.permutation(num_pages - 1)[: num_rows * pages_per_row] for _ in groups]
        self.page_tables = np.reshape(owned, (-1, num_rows, pages_per_row)).astype(np.int32)
        self.lens = [0] * num_rows
        self.caches = kv_cache.declare(
            model.cache_specs(), [num_pages] * len(groups), PAGE_SIZE, dtype, make_mesh(1)
        )
        self.caches = jax.tree.map(_garbage, self.caches)
        graphdef, state = nnx.split(model)
        self.leaves, treedef = jax.tree.flatten(state)

        @functools.partial(jax.jit, donate_argnames="caches")
        def run(leaves, token_ids, step, caches):
            model = nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))
            hidden, caches = model(token_ids, step, caches)
            return model.logits(hidden), caches

        self._run = run

    def step(self, rows: list[np.ndarray], kind: Literal["decode", "extend"]) -> list[np.ndarray]:
        """Adds token ids to each sequence; logits float32 `[tokens, V]` of each."""
        token_ids, inputs = self._pack(rows, kind)
        logits, caches = self._run(tuple(self.leaves), token_ids, inputs, self._copies())
        self.caches = caches
        self.lens = [n + len(row) for n, row in zip(self.lens, rows, strict=True)]
        ends = np.cumsum([len(row) for row in rows])
        return np.split(np.asarray(logits)[: ends[-1]], ends[:-1])

    def _copies(self) -> Caches:
        # XLA refuses to donate one buffer twice, and jnp.full may have made k and v of one.
        return jax.tree.map(jnp.copy, self.caches)

    def _pack(self, rows: list[np.ndarray], kind) -> tuple[jax.Array, StepInputs]:
        num_padding = 1 if kind == "decode" else 3
        positions = [n + np.arange(len(row)) for n, row in zip(self.lens, rows, strict=True)]
        slots = [
            self.page_tables[:, row, at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE
            for row, at in enumerate(positions)
        ]
        padding = np.zeros(num_padding, np.int32)
        starts = np.cumsum([0, *(len(row) for row in rows)])
        # In a decode step T == B, so the padding row has the padding token; else it has none.
        starts = np.append(starts, starts[-1] + (kind == "decode"))
        lens = [n + len(row) for n, row in zip(self.lens, rows, strict=True)] + [0]
        num_groups, _, width = self.page_tables.shape
        none = np.zeros((num_groups, 1, width), np.int32)
        tables = np.concatenate([self.page_tables, none], axis=1)
        used = np.arange(width)[None, :] * PAGE_SIZE < np.asarray(lens)[:, None]

        def device(*parts) -> jax.Array:
            return jnp.asarray(np.concatenate(parts), jnp.int32)

        inputs = StepInputs(
            positions=device(*positions, padding),
            slots=jnp.asarray(
                np.concatenate([*slots, np.tile(padding, (num_groups, 1))], axis=1), jnp.int32
            ),
            page_tables=jnp.asarray(np.where(used, tables, 0), jnp.int32),
            query_start=device(starts),
            context_lens=device(lens),
            kind=kind,
        )
        return device(*rows, padding), inputs

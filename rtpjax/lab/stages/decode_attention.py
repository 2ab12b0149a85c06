"""Attention of decode steps: rows of one length, and one long row among short ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import paged_attention
from pallas_kernels.paged_decode import Tiling, paged_decode
from pallas_kernels.paged_tiles import Operands, Scores
from rtpjax.lab.stage import Lab
from rtpjax.lab.steps import PAGE_SIZE, DataSheet, model_config, random_array
from rtpjax.lab.timing import seconds_each

_CALLS = 10  # in one program, each with pages of its own: L2 holds those of a few rows
_STAGES = (2, 3, 4, 5)


def run(lab: Lab) -> None:
    long = lab.pick(16_384, 128)
    batches = {
        "8x1k": [lab.pick(1024, 64)] * lab.pick(8, 2),
        "64x1k": [lab.pick(1024, 64)] * lab.pick(64, 4),
        "skewed": [lab.pick(512, 64)] * lab.pick(63, 3) + [long],
    }
    for name, contexts in batches.items():
        with lab.record.attempt(f"decode_attention.{name}"):
            _measure(lab, name, contexts)


def operands_of(lab: Lab, contexts: Sequence[int], num_tokens: int) -> tuple[Operands, int]:
    """Operands of a decode over contexts, and the bytes of their keys and values.

    Args:
        contexts: Tokens of each row.
        num_tokens: Query tokens; as many as rows in a decode.
    """
    model = model_config(lab)
    N, K, H = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    width = -(-max(contexts) // PAGE_SIZE)
    table = np.zeros((len(contexts), width), np.int32)
    at = 1
    for row, context in enumerate(contexts):
        count = -(-context // PAGE_SIZE)
        table[row, :count] = np.arange(at, at + count)
        at += count
    pages = (at, PAGE_SIZE, K, H)
    operands = Operands(
        q=random_array("q", (num_tokens, N, H)),
        k_pages=random_array("k", pages),
        v_pages=random_array("v", pages),
        page_table=jnp.asarray(table),
        query_start=jnp.asarray(np.linspace(0, num_tokens, len(contexts) + 1, dtype=np.int32)),
        context_lens=jnp.asarray(contexts, jnp.int32),
        sinks=None,
        k_scales=None,
        v_scales=None,
    )
    return operands, 2 * sum(contexts) * K * H * 2


def _measure(lab: Lab, name: str, contexts: Sequence[int]) -> None:
    operands, num_bytes = operands_of(lab, contexts, len(contexts))
    copies = lab.pick(_CALLS, 2)
    # A pool for each call, so that none finds its pages in L2.
    pools = [
        operands._replace(
            k_pages=random_array(f"k{i}", operands.k_pages.shape),
            v_pages=random_array(f"v{i}", operands.v_pages.shape),
        )
        for i in range(copies)
    ]
    H = operands.q.shape[-1]
    scores = Scores(scale=H**-0.5, window=None, soft_cap=None)
    limit = DataSheet.of(lab).us(num_bytes)
    default = Tiling.of(operands)
    tilings = {"": default}
    if not lab.is_small:
        tilings |= {f".stages{n}": dataclasses.replace(default, num_stages=n) for n in _STAGES}
    for suffix, tiling in tilings.items():
        id = f"decode_attention.{name}{suffix}"
        with lab.record.attempt(id):
            attend = partial(paged_decode, scores=scores, tiling=tiling, interpret=lab.is_small)
            s = seconds_each(partial(jax.jit(_chain(attend)), pools), calls=lab.pick(10, 1))
            us = s / copies * 1e6
            lab.record.measured(id, us, "us", limit=limit, tiling=dataclasses.asdict(tiling))
    with lab.record.attempt(f"decode_attention.{name}.xla"):
        function = paged_attention.OP.implementations["xla"].function
        named = {"scale": H**-0.5, "decode": True}

        def by_xla(o: Operands) -> jax.Array:
            return function(*o[:6], **named)

        s = seconds_each(partial(jax.jit(_chain(by_xla)), pools[:2]), calls=lab.pick(3, 1))
        lab.record.measured(f"decode_attention.{name}.xla", s / 2 * 1e6, "us", limit=limit)


def _chain(attend: Any) -> Any:
    """One call after the other, each with queries that the one before made."""

    def chain(pools: Sequence[Operands]) -> jax.Array:
        q = pools[0].q
        for operands in pools:
            q = attend(operands._replace(q=q)).astype(q.dtype)
        return q

    return chain
